"""What a recording amounts to: rates against ceilings, and the bottleneck."""

import dataclasses
import pathlib

from craft_jax.train.profile import hlo
from craft_jax.train.profile.timeline import IDLE, KINDS, OPTIMIZER, Profile

_HALF = 0.5  # of the ceiling: less is slow for products


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """What one device can do at most.

  Attributes:
    flops: FLOP/s of products in the precision of the run.
    bandwidth: bytes/s between the device and its memory.
    source: where the two are from.
  """

  flops: float
  bandwidth: float
  source: str


@dataclasses.dataclass(frozen=True)
class Recording:
  """What was recorded, and what it was recorded of.

  Attributes:
    profile: where the time went.
    plain_seconds: of a step that is not traced.
    calls: dispatches that were traced.
    compile_seconds: until the program was there and had run once.
    recompiled: programs that were compiled during the traced steps.
    wait_seconds: for data, per traced step.
    memory: bytes of the program's buffers on a device.
    tokens: of a step, on all devices.
    flops: of the model for a step, on all devices.
    ceilings: of a device.
    precision: of the products.
    mesh: size of each axis.
    device: what kind it is.
    platform: 'cpu', 'gpu', 'tpu'.
    steps_per_call: of the traced dispatches.
    folder: where the trace is.
  """

  profile: Profile
  plain_seconds: float
  calls: int
  compile_seconds: float
  recompiled: int
  wait_seconds: float
  memory: dict[str, int]
  tokens: int
  flops: float
  ceilings: Ceilings
  precision: str
  mesh: dict[str, int]
  device: str
  platform: str
  steps_per_call: int
  folder: pathlib.Path

  @property
  def tracing_seconds(self) -> float:
    """What tracing adds to a step; in the trace it looks like idle time."""
    return max(self.profile.step_seconds - self.plain_seconds, 0.0)

  @property
  def utilisation(self) -> float:
    """Share of the FLOP/s of all devices that the model's products are."""
    devices = self.profile.devices
    return self.flops / self.plain_seconds / devices / self.ceilings.flops

  @property
  def product_rate(self) -> float:
    """FLOP/s of a device while it computes products."""
    seconds = self.profile.kinds[hlo.PRODUCT]
    return self.profile.flops / seconds if seconds else 0.0

  @property
  def byte_rate(self) -> float:
    """Bytes/s of a device that its operations read and write."""
    return self.profile.bytes / self.plain_seconds


@dataclasses.dataclass(frozen=True)
class Rule:
  """When something is the bottleneck, and what to try.

  Attributes:
    share: key of `shares`.
    limit: share of a step that is a lot; what exceeds its own the most is the
      bottleneck.
    finding: what it means.
    advice: what to try next.
  """

  share: str
  limit: float
  finding: str
  advice: str


RULES = (
  Rule(
    'recompiled',
    0.5,
    'programs were compiled while it ran',
    'find out what changes its shape: a running run compiles nothing',
  ),
  Rule(
    'data',
    0.05,
    'the host waits for data',
    'raise data.prefetch, or keep the corpus on the device '
    '(data.placement=device)',
  ),
  Rule(
    'between calls',
    0.1,
    'devices wait for the next dispatch',
    'raise train.steps_per_call (0 chooses it)',
  ),
  Rule(
    'idle',
    0.15,
    'devices have nothing to do within a call',
    'operations are too small to fill them: a larger train.batch_size, or '
    'fewer devices',
  ),
  Rule(
    'waiting',
    0.1,
    'devices wait for each other before they exchange anything',
    'look for other work on the same cores; a device fewer may be quicker',
  ),
  Rule(
    'exchange',
    0.15,
    'devices exchange much for what they compute',
    'a larger train.batch_size per device sends the same gradients for more '
    'work; docs/scaling.md says what each mesh axis sends',
  ),
  Rule(
    OPTIMIZER,
    0.25,
    'the optimizer costs the same whatever the batch',
    'a larger train.batch_size or train.accumulate, or a lighter optim.name',
  ),
  Rule(
    hlo.MOVE,
    0.2,
    'values change place, layout or type rather than being computed',
    'see which product or norm they stand beside; another order of dims, or '
    'rounding once, may save them',
  ),
  Rule(
    hlo.SCATTER,
    0.1,
    'look-ups and scattered sums',
    'a one-hot product, or a smaller vocabulary, may be quicker',
  ),
  Rule(
    hlo.ELEMENTWISE,
    0.4,
    'passes over activations: memory, not products, sets the pace',
    'a smaller model.context or model.window shortens the softmax; wider '
    'layers give each pass more products',
  ),
  Rule(
    'float32 products',
    0.3,
    'products in float32',
    'model.precision=bfloat16, if the hardware multiplies that faster',
  ),
  Rule(
    'slow products',
    0.4,
    'products below half of the ceiling: they are too small for it',
    'a larger train.batch_size or model.width, and sizes that are multiples '
    'of 128',
  ),
  Rule(
    'fast products',
    0.5,
    'products near the ceiling: this is what the hardware can do',
    'only fewer FLOPs help: a smaller model, or more devices',
  ),
)


def shares(recording: Recording) -> dict[str, float]:
  """What `RULES` speak of, as shares of a traced step without the tracing.

  Tracing adds gaps, so that much is taken off the idle time. What the optimizer
  computes counts as its own, not among the kinds.
  """
  found = recording.profile
  real_idle = max(found.kinds[IDLE] - recording.tracing_seconds, 0.0)
  tracing = found.kinds[IDLE] - real_idle
  step = found.step_seconds - tracing
  several = recording.calls > 1
  rate = recording.product_rate
  slow = rate < _HALF * recording.ceilings.flops
  kinds = dict.fromkeys(KINDS, 0.0)
  for row in found.rows:
    if row.part != OPTIMIZER or row.kind == hlo.COLLECTIVE:
      kinds[row.kind] += row.seconds
  products = kinds[hlo.PRODUCT]
  whole = recording.precision == 'float32'
  seconds = {
    'data': recording.wait_seconds,
    'between calls': real_idle if several else 0.0,
    'idle': 0.0 if several else real_idle,
    'waiting': found.waiting_seconds,
    'exchange': found.kinds[hlo.COLLECTIVE] - found.waiting_seconds,
    OPTIMIZER: sum(
      row.seconds
      for row in found.rows
      if row.part == OPTIMIZER and row.kind != hlo.COLLECTIVE
    ),
    'float32 products': products if whole else 0.0,
    'slow products': products if slow and not whole else 0.0,
    'fast products': 0.0 if slow or whole else products,
  } | {k: kinds[k] for k in (hlo.MOVE, hlo.SCATTER, hlo.ELEMENTWISE)}
  return {
    'recompiled': float(recording.recompiled > 0),
    **{name: value / step for name, value in seconds.items()},
  }


def bottleneck(found: dict[str, float]) -> Rule:
  """The rule whose share exceeds its limit the most, or comes the nearest.

  Args:
    found: `shares`.
  """
  return max(RULES, key=lambda rule: found[rule.share] / rule.limit)


def verdict(recording: Recording) -> str:
  """One line: the bottleneck, its share and what to try."""
  found = shares(recording)
  rule = bottleneck(found)
  share = '' if rule.share == 'recompiled' else f' ({found[rule.share]:.0%})'
  name = KINDS.get(rule.share, rule.share)
  return f'{name}{share}: {rule.finding}; try: {rule.advice}'
