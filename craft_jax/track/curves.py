"""A run's figures against steps, characters, FLOPs or seconds."""

import dataclasses
import math

import numpy as np

from craft_jax.errors import UserError, hint
from craft_jax.track import columns
from craft_jax.track.runs import Run

# Axis -> what people call it.
AXES = {
  'steps': 'steps',
  'chars': 'characters read',
  'flops': 'FLOPs',
  'seconds': 'seconds',
}
HIGHER_IS_BETTER = frozenset({'val_accuracy', 'accuracy'})
# The column of training that goes with one of evaluation.
_TRAINING = {'val_loss': 'nll', 'val_bpb': 'bpb', 'val_bpc': 'bpc',
             'val_accuracy': 'accuracy'}  # fmt: skip
_RECENT = 0.1  # of the way: what a training figure is the mean over


@dataclasses.dataclass(frozen=True)
class Curve:
  """A figure of a run by where the run was.

  Attributes:
    x: ascending, by the axis.
    y: the figure; never NaN.
  """

  x: np.ndarray
  y: np.ndarray

  @property
  def end(self) -> float:
    """Where it ends; NaN of an empty one."""
    return float(self.x[-1]) if len(self.x) else math.nan

  def at(self, x: float) -> float | None:
    """Between the points around `x`; None outside of them."""
    slack = 1e-9 * abs(x)
    if not len(self.x) or not self.x[0] - slack <= x <= self.x[-1] + slack:
      return None
    return float(np.interp(x, self.x, self.y))

  def recent(self, x: float) -> float | None:
    """The mean over the last tenth of the way to `x`; None before the start.

    A single step of training is noise.
    """
    last = int(np.searchsorted(self.x, x * (1 + 1e-9), side='right'))
    if not last:
      return None
    first = int(np.searchsorted(self.x, x * (1 - _RECENT)))
    return float(self.y[min(first, last - 1) : last].mean())


def training_of(metric: str) -> str:
  """The column of training for one of evaluation: `nll` for `val_loss`."""
  return _TRAINING.get(metric, metric.removeprefix('val_'))


class Series:
  """A figure of a run, read once, against any axis."""

  def __init__(self, run: Run, name: str):
    """Args:
    run: the run.
    name: a key of its rows; `val_...` are those of evaluations.
    """
    table = columns.EVAL if name.startswith('val_') else columns.TRAIN
    self._run, self._name = run, name
    self._found = columns.read(run.path, table, [name, 'seconds'])

  def along(self, axis: str) -> Curve:
    """The curve; empty where the run has no such figure, or no such axis.

    Args:
      axis: a key of `AXES`.
    """
    x, y = self._x(axis), self._found.get(self._name)
    if x is None or y is None:
      return Curve(np.zeros(0), np.zeros(0))
    good = np.isfinite(x) & np.isfinite(y)
    return Curve(x[good], y[good])

  def _x(self, axis: str) -> np.ndarray | None:
    if axis == 'steps':
      return self._found['step']
    if axis == 'seconds':
      return self._found.get('seconds')
    units = ['symbols_per_step', f'{axis}_per_symbol']
    factors = [self._run.unit(unit) for unit in units]
    if None in factors:
      return None
    return self._found['step'] * math.prod(f for f in factors if f is not None)


def check_axis(axis: str) -> None:
  """Raises UserError unless `axis` is a key of `AXES`."""
  if axis not in AXES:
    raise UserError(
      f'no axis {axis!r}{hint(axis, AXES)}; use one of {", ".join(AXES)}'
    )
