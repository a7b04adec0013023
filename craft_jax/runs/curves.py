"""The metrics of a run against steps, characters, FLOPs or seconds."""

import dataclasses
import math
import pathlib

import numpy as np

from craft_jax.runs import columns
from craft_jax.runs.listing import Run

# Axis -> what people call it.
AXES = {
  'steps': 'steps',
  'chars': 'characters read',
  'flops': 'FLOPs',
  'seconds': 'seconds',
}
_RECENT = 0.1  # of the way: what a training figure is the mean over


@dataclasses.dataclass(frozen=True)
class Curve:
  """A metric of a run by where the run was.

  Long ones are mapped from a file: look at no more than is wanted.

  Attributes:
    x: ascending, by the axis, over `scale`.
    y: the metric, as long as `x`; NaN where it is not known.
    scale: what `x` is to be multiplied with.
  """

  x: np.ndarray
  y: np.ndarray
  scale: float = 1.0

  @property
  def end(self) -> float:
    """The last place on the axis; NaN of an empty curve."""
    return float(self.x[-1]) * self.scale if len(self.x) else math.nan

  def points(self) -> tuple[np.ndarray, np.ndarray]:
    """The points whose place and value are finite."""
    good = np.isfinite(self.x) & np.isfinite(self.y)
    return self.x[good] * self.scale, self.y[good]

  def at(self, place: float) -> float | None:
    """Between the points around a place; None outside of them."""
    x, y = self.points()
    slack = 1e-9 * abs(place)
    if not len(x) or not x[0] - slack <= place <= x[-1] + slack:
      return None
    return float(np.interp(place, x, y))

  def recent(self, place: float) -> float | None:
    """The mean over the last tenth of the way there; None before the start.

    A single step of training is noise.
    """
    x = place / self.scale
    last = int(np.searchsorted(self.x, x * (1 + 1e-9), side='right'))
    if not last:
      return None
    first = int(np.searchsorted(self.x, x * (1 - _RECENT)))
    some = self.y[min(first, last - 1) : last]
    known = some[np.isfinite(some)]
    return float(known.mean()) if len(known) else None


def evaluations(folder: pathlib.Path, metric: str) -> dict[int, float]:
  """A metric of the evaluations of a run by step, where it is finite."""
  table = columns.read(folder, columns.EVAL, [metric])
  pairs = zip(table['step'], table.get(metric, ()), strict=False)
  return {int(step): float(v) for step, v in pairs if math.isfinite(v)}


class Series:
  """A metric of a run, read once, against any axis."""

  def __init__(self, run: Run, name: str):
    """Args:
    run: the run.
    name: a key of its rows; `val_...` are those of evaluations.
    """
    table = columns.EVAL if name.startswith('val_') else columns.TRAIN
    self._run, self._name = run, name
    self._found = columns.read(run.path, table, [name, 'seconds'])

  def along(self, axis: str) -> Curve:
    """The curve; empty where the run has no such metric, or no such axis.

    Args:
      axis: a key of `AXES`.
    """
    x = self._found.get('seconds' if axis == 'seconds' else 'step')
    y, factors = self._found.get(self._name), [1.0]
    if axis not in ('steps', 'seconds'):
      units = ('tokens_per_step', f'{axis}_per_token')
      known = [self._run.unit(unit) for unit in units]
      factors = [factor for factor in known if factor is not None]
      x = x if len(factors) == len(known) else None
    if x is None or y is None:
      return Curve(np.zeros(0), np.zeros(0))
    if len(x) and np.isnan(x[0]):  # begun by a version that had no clock
      timed = np.isfinite(x)
      x, y = x[timed], y[timed]
    return Curve(x, y, math.prod(factors))
