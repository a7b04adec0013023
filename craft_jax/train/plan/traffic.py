"""What devices send each other in a step, as the program does it."""

import math
from collections.abc import Iterator

from craft_jax.train.optim.muon import NUM_ITERATIONS
from craft_jax.train.plan.devices import Device
from craft_jax.train.plan.layout import Collective, Layout, collective
from craft_jax.train.plan.memory import rows_per_device
from craft_jax.train.plan.model import Sketch


def traffic(sketch: Sketch, device: Device, layout: Layout) -> list[Collective]:
  """Every exchange of a step that grows with the model or the batch.

  Left out are scalars: norms and sums.
  """
  found = [*_gradients(sketch, layout), *_gathers(sketch, layout)]
  found += _activations(sketch, layout)
  if sketch.cfg.optim.name == 'muon':
    found += _muon(sketch, layout)
  return [
    collective(device, layout, axis, kind, what, payload)
    for axis, kind, what, payload in found
    if getattr(layout, axis) > 1 and payload
  ]


Payload = tuple[str, str, str, float]  # axis, kind, what, bytes


def _gradients(sketch: Sketch, layout: Layout) -> Iterator[Payload]:
  """Sums float32 gradients over the batch, for each micro-batch.

  Over `fsdp` each device keeps its part of the sum; the few parameters that
  are not spread over it are summed whole. Over `data` each part is summed.
  """
  times = sketch.cfg.train.accumulate
  parts, rest = 0.0, 0.0
  for leaf in sketch.params:
    whole = times * leaf.bytes / leaf.split(layout, 'tensor')
    if 'fsdp' in leaf.spec:
      parts += whole
    else:
      rest += whole
  local = times * sketch.bytes('params', layout)
  yield 'data', 'all-reduce', 'gradients', local
  yield 'fsdp', 'reduce-scatter', 'gradients', parts
  yield 'fsdp', 'all-reduce', 'gradients of norms', rest


def _gathers(sketch: Sketch, layout: Layout) -> Iterator[Payload]:
  """Parameters spread over `fsdp`, whole for their use.

  Kernels of the blocks travel rounded, for the forward and for the backward
  pass, also where that repeats the forward pass first. The tables and the head
  are small: they travel once, in float32.
  """
  cfg = sketch.cfg
  uses = 2 * (1.0 if cfg.model.precision == 'float32' else 0.5)
  total = 0.0
  for leaf in sketch.params:
    if 'fsdp' in leaf.spec:
      times = uses if leaf in sketch.matrices else 1.0
      total += times * leaf.bytes / leaf.split(layout, 'tensor')
  yield 'fsdp', 'all-gather', 'parameters', cfg.train.accumulate * total


def _activations(sketch: Sketch, layout: Layout) -> Iterator[Payload]:
  """Sums over `tensor` the products that are split."""
  cfg, rows = sketch.cfg, rows_per_device(sketch.cfg, layout)
  each = sketch.model().tensor_bytes(rows, cfg.model.context)
  yield 'tensor', 'all-reduce', 'activations', cfg.train.accumulate * each


# --- Muon --------------------------------------------------------------------


def _stacks(sketch: Sketch, layout: Layout) -> list[tuple[int, int, int]]:
  """`(matrices, rows, columns)` of the stacks: equal shapes, spread alike."""
  groups: dict[tuple[int, int, tuple[str | None, ...]], int] = {}
  for leaf in sketch.matrices:
    depth, rows, columns = leaf.shape
    spread = tuple(
      axis if axis and getattr(layout, axis) > 1 else None for axis in leaf.spec
    )
    key = (rows, columns, spread)
    groups[key] = groups.get(key, 0) + depth
  return [(count, *key[:2]) for key, count in groups.items()]


def _muon(sketch: Sketch, layout: Layout) -> Iterator[Payload]:
  """Brings whole matrices to the devices that share them, and updates back.

  A stack is filled up to divide over all devices. Each axis that its matrices
  are split over exchanges what a device has, there and back; `data` holds
  copies, so going there is free, and coming back a gather.
  """
  local = 0.0
  for count, rows, columns in _stacks(sketch, layout):
    padded = -(-count // layout.devices) * layout.devices
    local += 4.0 * rows * columns * padded / (layout.fsdp * layout.tensor)
  yield 'fsdp', 'all-to-all', 'Muon stacks', 2 * local
  yield 'tensor', 'all-to-all', 'Muon stacks', 2 * local
  yield 'data', 'all-gather', 'Muon updates', local


def muon_flops(sketch: Sketch, layout: Layout) -> float:
  """FLOPs of one device for the polynomials of its matrices.

  Per matrix I x J, I <= J: each iteration X X^T, G G and the product with X,
  4 I^2 J + 2 I^3; where J >= 2 I two iterations share both long products and
  add four square ones, 4 I^2 J + 10 I^3 for the pair (`train/optim/muon.py`).
  """
  if sketch.cfg.optim.name != 'muon':
    return 0.0
  total = 0.0
  for count, rows, columns in _stacks(sketch, layout):
    small, large = sorted((rows, columns))
    long, cube = 4.0 * small**2 * large, 2.0 * small**3
    if large >= 2 * small:
      each = (long + 5 * cube) * NUM_ITERATIONS / 2
    else:
      each = (long + cube) * NUM_ITERATIONS
    total += math.ceil(count / layout.devices) * each
  return total
