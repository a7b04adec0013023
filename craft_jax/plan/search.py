"""The largest batch, accumulation and rematerialisation that fit."""

import dataclasses
from typing import NamedTuple

from craft_jax.plan.layout import Layout
from craft_jax.plan.memory import memory
from craft_jax.plan.model import Sketch
from craft_jax.settings import Config

REMAT = ('none', 'dots', 'block')  # ever less memory, for ever more work
_MOST_ROWS = 1 << 20


class Option(NamedTuple):
  """What fits under one rematerialisation.

  Attributes:
    remat: `model.remat`.
    rows: sequences of the largest micro-batch, over all devices; 0 if none.
    accumulate: fewest micro-batches of the run's own batch that fit; 0 if it
      does not fit in any number.
    bytes: of a device with that many micro-batches, or with the most.
  """

  remat: str
  rows: int
  accumulate: int
  bytes: float


def needed(sketch: Sketch, layout: Layout, platform: str) -> float:
  """Bytes on a device at the height of a step."""
  return memory(sketch, layout, platform).total


def options(
  sketch: Sketch,
  layout: Layout,
  limit: float,
  platform: str,
  smaller: bool = False,
) -> list[Option]:
  """What fits under the run's rematerialisation and each heavier one.

  Args:
    sketch: the run.
    layout: sizes of the mesh axes; divides the model.
    limit: bytes on each device.
    platform: JAX's name.
    smaller: only more micro-batches than the run has.
  """
  least = REMAT.index(sketch.cfg.model.remat)
  return [
    _option(
      _changed(sketch, 'model', remat=remat), layout, limit, platform, smaller
    )
    for remat in REMAT[least:]
  ]


def _option(
  sketch: Sketch, layout: Layout, limit: float, platform: str, smaller: bool
) -> Option:
  train = sketch.cfg.train
  whole = [
    pieces
    for pieces in range(train.accumulate + smaller, train.batch_size + 1)
    if train.batch_size % pieces == 0
    and train.batch_size // pieces % layout.shards == 0
  ]
  used, pieces = 0.0, 0
  for pieces in whole:
    changed = _changed(sketch, 'train', accumulate=pieces)
    used = needed(changed, layout, platform)
    if used <= limit:
      break
  else:
    pieces = 0
  return Option(
    sketch.cfg.model.remat,
    largest_rows(sketch, layout, limit, platform),
    pieces,
    used,
  )


def largest_rows(
  sketch: Sketch, layout: Layout, limit: float, platform: str
) -> int:
  """Sequences of the largest batch that fits without accumulation; or 0."""
  low, high = 0, _MOST_ROWS // layout.shards
  while low < high:  # by halving: bytes grow with rows
    middle = (low + high + 1) // 2
    rows = middle * layout.shards
    changed = _changed(sketch, 'train', batch_size=rows, accumulate=1)
    if needed(changed, layout, platform) <= limit:
      low = middle
    else:
      high = middle - 1
  return low * layout.shards


def best(found: list[Option]) -> Option | None:
  """The lightest rematerialisation that the run's batch fits under.

  Micro-batches of one row per device are slow, so a heavier one is taken where
  it saves most of them.
  """
  fitting = [option for option in found if option.accumulate]
  if not fitting:
    return None
  fewest = min(option.accumulate for option in fitting)
  return next(o for o in fitting if o.accumulate <= max(4, 2 * fewest))


def flags(option: Option, before: Config) -> list[str]:
  """The settings of an option that a config does not have yet."""
  wanted = []
  if option.accumulate != before.train.accumulate:
    wanted.append(f'--config.train.accumulate={option.accumulate}')
  if option.remat != before.model.remat:
    wanted.append(f'--config.model.remat={option.remat}')
  return wanted


def largest_flags(option: Option, before: Config) -> list[str]:
  """The settings of the largest batch in one piece."""
  wanted = [f'--config.train.batch_size={option.rows}']
  if before.train.accumulate > 1:
    wanted.append('--config.train.accumulate=1')
  if option.remat != before.model.remat:
    wanted.append(f'--config.model.remat={option.remat}')
  return wanted


def _changed(sketch: Sketch, section: str, **values: object) -> Sketch:
  part = dataclasses.replace(getattr(sketch.cfg, section), **values)
  cfg = dataclasses.replace(sketch.cfg, **{section: part})
  return dataclasses.replace(sketch, cfg=cfg)
