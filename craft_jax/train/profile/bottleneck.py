"""Rates of a profiled step against the roofline, and its bottleneck."""

import dataclasses
import pathlib

from craft_jax.train.profile import hlo
from craft_jax.train.profile.timeline import IDLE, KINDS, OPTIMIZER, Profile

_HALF = 0.5  # fraction of peak FLOP/s below which products count as slow


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """Roofline of a device.

  Attributes:
    flops: peak FLOP/s of matrix products in the run's precision.
    bandwidth: memory bandwidth in bytes/s.
    source: where the two numbers are from.
  """

  flops: float
  bandwidth: float
  source: str


@dataclasses.dataclass(frozen=True)
class Recording:
  """A profiled run of some steps.

  Attributes:
    profile: time by operation.
    plain_seconds: seconds per step without tracing.
    calls: number of traced dispatches.
    compile_seconds: seconds to compile the program and run it once.
    recompiled: number of programs compiled during the traced steps.
    wait_seconds: seconds waiting for data, per traced step.
    memory: bytes of the program's buffers on a device, by kind.
    tokens: tokens per step, on all devices.
    flops: FLOPs of the model per step, on all devices.
    ceilings: roofline of a device.
    precision: dtype of the operands of matrix products.
    mesh: size of each mesh axis.
    device: kind of device.
    platform: 'cpu', 'gpu' or 'tpu'.
    steps_per_call: steps per traced dispatch.
    folder: folder of the trace.
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
    """Overhead of tracing per step, which the trace shows as idle time."""
    return max(self.profile.step_seconds - self.plain_seconds, 0.0)

  @property
  def utilisation(self) -> float:
    """Model FLOPs utilisation (MFU): fraction of all devices' peak FLOP/s."""
    devices = self.profile.devices
    return self.flops / self.plain_seconds / devices / self.ceilings.flops

  @property
  def product_rate(self) -> float:
    """FLOP/s of a device while it computes matrix products."""
    seconds = self.profile.kinds[hlo.PRODUCT]
    return self.profile.flops / seconds if seconds else 0.0

  @property
  def byte_rate(self) -> float:
    """Bytes/s that the operations of a device read and write."""
    return self.profile.bytes / self.plain_seconds


@dataclasses.dataclass(frozen=True)
class Rule:
  """A possible bottleneck, and what to try.

  Attributes:
    share: key in the result of `shares`.
    limit: share of a step that counts as large; the bottleneck is the rule
      whose share exceeds its limit by the largest factor.
    finding: what a large share means.
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
    'programs were compiled during the traced steps',
    'find out which array changes its shape: training compiles only at start',
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
    'raise train.steps_per_call (0 chooses it automatically)',
  ),
  Rule(
    'idle',
    0.15,
    'devices are idle within a dispatch',
    'operations are too small to fill them: a larger train.batch_size, or '
    'fewer devices',
  ),
  Rule(
    'waiting',
    0.1,
    'devices wait for each other before collectives',
    'look for other processes on the same cores; one device fewer may be '
    'faster',
  ),
  Rule(
    'exchange',
    0.15,
    'collectives take long compared with computation',
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
    'data is copied, transposed or converted instead of computed',
    'see which product or norm it belongs to; another order of dims, or '
    'rounding once, may avoid it',
  ),
  Rule(
    hlo.SCATTER,
    0.1,
    'lookups and scattered sums',
    'a one-hot product, or a smaller vocabulary, may be faster',
  ),
  Rule(
    hlo.ELEMENTWISE,
    0.4,
    'passes over activations: memory traffic, not products, limits the speed',
    'a smaller model.context or model.window shortens the softmax; wider '
    'layers give each pass more products',
  ),
  Rule(
    'float32 products',
    0.3,
    'products in float32',
    'model.precision=bfloat16, if the hardware supports it',
  ),
  Rule(
    'slow products',
    0.4,
    'products below half of the ceiling: they are too small to reach it',
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
  """Shares of a step by the keys of `RULES`.

  The overhead of tracing is subtracted from idle time. Operations of the
  optimizer are counted separately, not by their kinds.
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
  """The rule with the largest ratio of share to limit, given `shares`."""
  return max(RULES, key=lambda rule: found[rule.share] / rule.limit)


def verdict(recording: Recording) -> str:
  """One line with the bottleneck, its share and what to try."""
  found = shares(recording)
  rule = bottleneck(found)
  share = '' if rule.share == 'recompiled' else f' ({found[rule.share]:.0%})'
  name = KINDS.get(rule.share, rule.share)
  return f'{name}{share}: {rule.finding}; try: {rule.advice}'
