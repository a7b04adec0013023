"""A step on given devices: bytes, seconds, and what bounds it."""

import dataclasses
from typing import Any

from craft_jax.errors import UserError
from craft_jax.train.plan.devices import Device
from craft_jax.train.plan.layout import AXES, Collective, Layout
from craft_jax.train.plan.memory import USABLE, Memory, memory
from craft_jax.train.plan.model import Sketch
from craft_jax.train.plan.traffic import muon_flops, traffic

UTILISATION = 0.4  # of the peak, by dense products; a good run on many devices
# Forward passes done again, in forward passes: remat=dots repeats no product.
_REPEATED = {'none': 0.0, 'dots': 0.0, 'block': 1.0}


@dataclasses.dataclass(frozen=True)
class Plan:
  """An estimate of one step.

  Attributes:
    sketch: the run.
    device: what it runs on.
    layout: how many, and how they are laid out.
    utilisation: share of the peak that the products reach.
    memory: bytes on one device.
    flops: of the step, forward and backward, all devices.
    compute_seconds: of the step's products, repeated ones included.
    optimizer_seconds: of one pass over the state in memory, and of Muon's
      products.
    collectives: what devices send each other.
  """

  sketch: Sketch
  device: Device
  layout: Layout
  utilisation: float
  memory: Memory
  flops: int
  compute_seconds: float
  optimizer_seconds: float
  collectives: tuple[Collective, ...]

  @property
  def fits(self) -> bool:
    """Whether the bytes are within the usable share of the memory."""
    return self.memory.total <= USABLE * self.device.memory

  @property
  def tokens(self) -> int:
    """Of a step."""
    return self.sketch.cfg.train.batch_size * self.sketch.cfg.model.context

  @property
  def communication_seconds(self) -> float:
    """Of all collectives, one after the other."""
    return sum(c.seconds for c in self.collectives)

  @property
  def step_seconds(self) -> tuple[float, float]:
    """Least and most: communication hidden behind the products, or not."""
    apart = self.compute_seconds + self.communication_seconds
    hidden = max(self.compute_seconds, self.communication_seconds)
    return hidden + self.optimizer_seconds, apart + self.optimizer_seconds

  def on_axis(self, axis: str) -> float:
    """Seconds of communication along an axis of the mesh."""
    return sum(c.seconds for c in self.collectives if c.axis == axis)

  def verdict(self) -> str:
    """What bounds the step, in words."""
    ratio = self.communication_seconds / self.compute_seconds
    if not self.collectives:
      return 'bound by compute: one device sends nothing'
    worst = max(AXES, key=self.on_axis)
    text = f'communication is {ratio:.2f} of compute, most on {worst}'
    if ratio < 0.1:
      return f'bound by compute: {text}'
    if ratio < 1:
      return f'bound by compute if overlapped: {text}'
    return f'bound by communication: {text}'


def estimate(
  sketch: Sketch,
  device: Device,
  layout: Layout,
  utilisation: float = UTILISATION,
) -> Plan:
  """The plan of a run on a layout.

  Args:
    sketch: the run.
    device: of which there are `layout.devices`.
    layout: sizes of the mesh axes.
    utilisation: share of the peak that products reach, above 0, at most 1.

  Raises:
    UserError: the model or the batch does not divide, or no such utilisation.
  """
  if not 0 < utilisation <= 1:
    raise UserError(
      f'utilisation {utilisation:g} must be above 0 and at most 1, such as '
      f'{UTILISATION}'
    )
  sketch.check(layout)
  cfg = sketch.cfg
  flops = sketch.flops_per_token * cfg.train.batch_size * cfg.model.context
  speed = device.peak * utilisation
  # A third of forward and backward is forward.
  repeated = 1 + _REPEATED[cfg.model.remat] / 3
  used = memory(sketch, layout, device.platform)
  # Reads gradients and state, writes the state.
  moved = used.params + 2 * used.state
  return Plan(
    sketch,
    device,
    layout,
    utilisation,
    used,
    flops,
    repeated * flops / layout.devices / speed,
    moved / device.memory_bandwidth + muon_flops(sketch, layout) / speed,
    tuple(traffic(sketch, device, layout)),
  )


def as_dict(plan: Plan) -> dict[str, Any]:
  """The plan as plain numbers; bytes, FLOPs and seconds."""
  least, most = plan.step_seconds
  return {
    'mesh': plan.layout._asdict(),
    'devices': plan.layout.devices,
    'params': plan.sketch.num_params,
    'tokens': plan.tokens,
    'utilisation': plan.utilisation,
    'memory': dataclasses.asdict(plan.memory),
    'memory_total': plan.memory.total,
    'memory_usable': USABLE * plan.device.memory,
    'fits': plan.fits,
    'flops': plan.flops,
    'compute_seconds': plan.compute_seconds,
    'optimizer_seconds': plan.optimizer_seconds,
    'communication_seconds': plan.communication_seconds,
    'step_seconds': {'overlapped': least, 'apart': most},
    'collectives': [dataclasses.asdict(c) for c in plan.collectives],
    'verdict': plan.verdict(),
  }
