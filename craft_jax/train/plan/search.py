"""The mesh, batch, accumulation and rematerialisation that fit."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.train.plan.memory import memory
from craft_jax.train.plan.model import Layout, Sketch

REMAT = ('none', 'dots', 'block')  # ever less memory, for ever more work
_MOST_ROWS = 1 << 20
_BUSY = 2048  # tokens of a micro-batch that keep a device busy


class Bound(NamedTuple):
  """What a run has to fit into.

  Attributes:
    bytes: on each device.
    platform: JAX's name.
    correction: what a compiler was seen to need over what the plan says, of all
      but the state.
  """

  bytes: float
  platform: str
  correction: float = 1.0


class Option(NamedTuple):
  """What fits under one rematerialisation.

  Attributes:
    remat: `model.remat`.
    rows: sequences of the largest micro-batch, over all devices; 0 if none.
    accumulate: fewest micro-batches of the run's own batch that fit; 0 if it
      does not fit in any number.
    bytes: on a device, with that many micro-batches, or with the most.
  """

  remat: str
  rows: int
  accumulate: int
  bytes: float


def needed(sketch: Sketch, layout: Layout, bound: Bound) -> float:
  """Bytes on a device at the height of a step."""
  used = memory(sketch, layout, bound.platform)
  return used.state + bound.correction * (used.total - used.state)


def options(
  sketch: Sketch, layout: Layout, bound: Bound, smaller: bool = False
) -> list[Option]:
  """What fits under the run's rematerialisation and each heavier one.

  Args:
    sketch: the run.
    layout: sizes of the mesh axes; divides the model.
    bound: what it has to fit into.
    smaller: only more micro-batches than the run has.
  """
  least = REMAT.index(sketch.cfg.model.remat)
  return [
    _option(_changed(sketch, 'model', remat=remat), layout, bound, smaller)
    for remat in REMAT[least:]
  ]


def _option(
  sketch: Sketch, layout: Layout, bound: Bound, smaller: bool
) -> Option:
  train = sketch.cfg.train
  found, used = 0, 0.0
  for pieces in range(train.accumulate + smaller, train.batch_size + 1):
    if train.batch_size % (pieces * layout.shards):
      continue
    changed = _changed(sketch, 'train', accumulate=pieces)
    used = needed(changed, layout, bound)
    if used <= bound.bytes:
      found = pieces
      break
  rows = largest_rows(sketch, layout, bound)
  return Option(sketch.cfg.model.remat, rows, found, used)


def largest_rows(sketch: Sketch, layout: Layout, bound: Bound) -> int:
  """Sequences of the largest batch that fits without accumulation; or 0."""
  low, high = 0, _MOST_ROWS // layout.shards
  while low < high:  # by halving: bytes grow with rows
    middle = (low + high + 1) // 2
    rows = middle * layout.shards
    changed = _changed(sketch, 'train', batch_size=rows, accumulate=1)
    if needed(changed, layout, bound) <= bound.bytes:
      low = middle
    else:
      high = middle - 1
  return low * layout.shards


def best(found: list[Option], cfg: Config, layout: Layout) -> Option | None:
  """The lightest rematerialisation that the run's batch fits under.

  A heavier one where it saves half of the micro-batches or more, if they are so
  small that a device is not kept busy.
  """
  fitting = [option for option in found if option.accumulate]
  if not fitting:
    return None
  tokens = cfg.train.batch_size * cfg.model.context // layout.shards
  fewest = min(option.accumulate for option in fitting)
  return next(
    option
    for option in fitting
    if option.accumulate < 2 * fewest or tokens // option.accumulate >= _BUSY
  )


def layouts(num_devices: int) -> Iterator[Layout]:
  """Every way to spread devices over the axes, the simplest first."""
  divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
  for tensor in divisors:
    rest = num_devices // tensor
    for fsdp in divisors:
      if rest % fsdp == 0:
        yield Layout(rest // fsdp, fsdp, tensor)


def recommend(
  sketch: Sketch, num_devices: int, bound: Bound
) -> tuple[Layout, Sketch]:
  """The simplest mesh that a run fits on; memory alone decides.

  Of the meshes with the smallest tensor axis, the one with the smallest fsdp
  axis that the run fits on as it is; else the first that it fits on with the
  micro-batches and the rematerialisation that the leanest of them needs. Where
  nothing helps, the next larger tensor axis is tried.

  Args:
    sketch: the run.
    num_devices: how many there are.
    bound: what it has to fit into.

  Returns:
    The mesh, and the run with what it needs to fit there. Where nothing fits,
    the mesh that needs the least, and the run as it is.

  Raises:
    UserError: no mesh divides the model and the batch.
  """
  if num_devices < 1:
    raise UserError(f'{num_devices} devices; give at least 1')
  divided = [x for x in layouts(num_devices) if not sketch.problem(x)]
  if not divided:
    rows = sketch.cfg.train.batch_size // sketch.cfg.train.accumulate
    raise UserError(
      f'no mesh of {num_devices} devices divides the model and '
      f'train.batch_size / train.accumulate = {rows}; use a multiple of '
      f'{num_devices}, or fewer devices'
    )
  for _, group in itertools.groupby(divided, key=lambda x: x.tensor):
    same = list(group)
    run, fitting = sketch, _fitting(sketch, same, bound)
    if not fitting:
      leanest = min(same, key=lambda x: needed(sketch, x, bound))
      if option := best(options(sketch, leanest, bound), sketch.cfg, leanest):
        run = _changed(sketch, 'model', remat=option.remat)
        run = _changed(run, 'train', accumulate=option.accumulate)
        fitting = _fitting(run, same, bound)
    if fitting:
      return fitting[0], run
  return min(divided, key=lambda x: needed(sketch, x, bound)), sketch


def _fitting(sketch: Sketch, found: list[Layout], bound: Bound) -> list[Layout]:
  return [x for x in found if needed(sketch, x, bound) <= bound.bytes]


def flags(option: Option, before: Config) -> list[str]:
  """The settings of an option that a config does not have yet."""
  wanted = []
  if option.accumulate != before.train.accumulate:
    wanted.append(f'--config.train.accumulate={option.accumulate}')
  return [*wanted, *_remat_flag(option, before)]


def largest_flags(option: Option, before: Config) -> list[str]:
  """The settings of the largest batch in one piece."""
  wanted = [f'--config.train.batch_size={option.rows}']
  if before.train.accumulate > 1:
    wanted.append('--config.train.accumulate=1')
  return [*wanted, *_remat_flag(option, before)]


def _remat_flag(option: Option, before: Config) -> list[str]:
  if option.remat == before.model.remat:
    return []
  return [f'--config.model.remat={option.remat}']


def _changed(sketch: Sketch, section: str, **values: object) -> Sketch:
  part = dataclasses.replace(getattr(sketch.cfg, section), **values)
  cfg = dataclasses.replace(sketch.cfg, **{section: part})
  return dataclasses.replace(sketch, cfg=cfg)
