"""How devices are laid out on the mesh, and what a collective costs there.

`tensor` is the innermost axis of the mesh, then `fsdp`, then `data`, so
neighbours along `tensor` share the fast links first.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from craft_jax.train.plan.devices import Device


class Layout(NamedTuple):
  """Sizes of the mesh axes, in devices."""

  data: int = 1
  fsdp: int = 1
  tensor: int = 1

  @property
  def devices(self) -> int:
    """All of them."""
    return math.prod(self)

  @property
  def shards(self) -> int:
    """Parts of the batch."""
    return self.data * self.fsdp

  def __str__(self) -> str:
    return f'data={self.data} fsdp={self.fsdp} tensor={self.tensor}'


AXES = Layout._fields


@dataclasses.dataclass(frozen=True)
class Span:
  """Where the devices of one axis lie.

  Attributes:
    near: of its devices, those in one domain of fast links.
    far: domains it crosses.
    fast: bytes/s of a device along the axis within the domain.
    slow: bytes/s of a device to other domains.
    hops: links that a byte to a random device of the domain passes.
  """

  near: int
  far: int
  fast: float
  slow: float
  hops: float


def span(device: Device, layout: Layout, axis: str) -> Span:
  """Where an axis lies, and how fast its links are.

  On a torus each axis of the mesh gets one dim of the torus, the largest the
  dims that are left, and the speed of these links; below `closed_from`
  devices half of it.
  """
  index = AXES.index(axis)
  size, stride = layout[index], math.prod(layout[index + 1 :])
  near = min(size, max(1, device.domain // stride))
  dims = _torus_dims(device, layout, axis) if device.torus else 1
  share = dims / device.torus if device.torus else 1.0
  if layout.devices < device.closed_from:
    share /= 2
  # Half way round each ring at most, a quarter on average (torus only).
  hops = dims * near ** (1 / dims) / 4 if device.torus else 1.0
  far = -(-size // near)
  return Span(near, far, device.fast * share, device.slow, max(1.0, hops))


def _torus_dims(device: Device, layout: Layout, axis: str) -> int:
  """Dims of the torus that an axis of the mesh is given."""
  used = [name for name in AXES if getattr(layout, name) > 1]
  if not used:
    return device.torus
  largest = max(used, key=lambda name: getattr(layout, name))
  left = max(1, device.torus - len(used) + 1)
  return left if axis == largest else 1


# --- ring formulas -----------------------------------------------------------
# (fast, slow) bytes that one device sends. `payload` is what a device holds
# afterwards (all-gather), or before (the others). In two levels the domains
# exchange first, each member its share, and then pass it on inside.


def _all_gather(payload: float, s: Span) -> tuple[float, float]:
  """(n-1)/n of the payload."""
  slow = payload / s.near * (s.far - 1) / s.far
  return payload * (s.near - 1) / s.near, slow


def _all_reduce(payload: float, s: Span) -> tuple[float, float]:
  """A reduce-scatter and an all-gather: 2 (n-1)/n of the payload."""
  fast, slow = _all_gather(payload, s)
  return 2 * fast, 2 * slow


def _all_to_all(payload: float, s: Span) -> tuple[float, float]:
  """(n-1)/n of the payload, times the hops, which forward for others."""
  fast = payload * (s.near - 1) / s.near / s.far
  return fast * s.hops, payload * (s.far - 1) / s.far


_KINDS: dict[str, Callable[[float, Span], tuple[float, float]]] = {
  'all-gather': _all_gather,
  'reduce-scatter': _all_gather,  # the same bytes, the other way round
  'all-reduce': _all_reduce,
  'all-to-all': _all_to_all,
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of exchange, all of a step.

  Attributes:
    axis: of the mesh.
    kind: all-reduce, all-gather, reduce-scatter or all-to-all.
    what: is exchanged.
    payload: bytes per device and step: the whole of what is gathered, reduced
      or exchanged.
    fast: bytes a device sends within its domain.
    slow: bytes a device sends to other domains.
    seconds: of both, one after the other, at the peak speed of the links.
  """

  axis: str
  kind: str
  what: str
  payload: float
  fast: float
  slow: float
  seconds: float


def collective(
  device: Device,
  layout: Layout,
  axis: str,
  kind: str,
  what: str,
  payload: float,
) -> Collective:
  """What an exchange along an axis costs a device.

  Ring algorithms (Thakur et al. 2005, doi:10.1177/1094342005051521), without
  latency: true for the megabytes of a training step, not for small messages.
  """
  where = span(device, layout, axis)
  fast, slow = _KINDS[kind](payload, where)
  seconds = fast / where.fast + slow / where.slow
  return Collective(axis, kind, what, payload, fast, slow, seconds)
