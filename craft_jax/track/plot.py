"""Curves of runs as a picture; needs matplotlib (the extra `runs`)."""

import pathlib
from collections.abc import Sequence

import numpy as np

from craft_jax.errors import UserError, hint
from craft_jax.track import curves
from craft_jax.track.runs import Run

SUFFIXES = ('.png', '.svg', '.pdf')
_POINTS = 2000  # of a curve; more cannot be seen


def thinned(x: np.ndarray, y: np.ndarray, points: int = _POINTS):
  """At most `points` points: means over stretches of equal number."""
  if len(x) <= points:
    return x, y
  edges = np.linspace(0, len(x), points + 1).astype(int)
  sizes = np.diff(edges)
  return tuple(np.add.reduceat(v, edges[:-1]) / sizes for v in (x, y))


def smoothed(y: np.ndarray, weight: float) -> np.ndarray:
  """An exponential mean: `weight` of what was, the rest of what is.

  Corrected for its start, as Adam does (arXiv:1412.6980).
  """
  if not weight:
    return y
  out, mean, share = np.empty_like(y, float), 0.0, 0.0
  for i, value in enumerate(y):
    mean = weight * mean + (1 - weight) * value
    share = weight * share + (1 - weight)
    out[i] = mean / share
  return out


def check(output: str, smooth: float, log: str, metrics: Sequence[str]) -> None:
  """Raises UserError if what is asked for cannot be drawn."""
  suffix = pathlib.Path(output).suffix
  if suffix not in SUFFIXES:
    raise UserError(
      f'--output={output} must end in one of {", ".join(SUFFIXES)}'
    )
  if not 0 <= smooth < 1:
    raise UserError(f'--smooth={smooth} must be from 0 to below 1')
  if set(log) - set('xy'):
    raise UserError(f'--log={log} must be x, y or xy')
  if not metrics:
    raise UserError('--metric is empty; give one, such as loss')
  try:
    import matplotlib  # noqa: F401
  except ImportError:
    raise UserError(
      "plots need matplotlib: pip install 'craft-jax[runs]'"
    ) from None


def draw(
  runs: Sequence[Run],
  output: str,
  metrics: Sequence[str] = ('loss', 'val_loss'),
  axis: str = 'steps',
  smooth: float = 0.0,
  log: str = '',
) -> int:
  """Draws a picture; returns how many curves it has.

  Args:
    runs: a colour each.
    output: the file; its suffix decides the format.
    metrics: keys of rows; those of evaluations are drawn with dots.
    axis: a key of `curves.AXES`.
    smooth: weight of the exponential mean, of training figures only.
    log: axes that are logarithmic: '', 'x', 'y' or 'xy'.

  Raises:
    UserError: nothing to draw, or the file cannot be written.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 5.5), layout='constrained')
  axes = figure.add_subplot()
  drawn = 0
  for number, run in enumerate(runs):
    for metric in metrics:
      x, y = curves.Series(run, metric).along(axis).points()
      if not len(x):
        continue
      evaluated = metric.startswith('val_')
      x, y = thinned(x, y if evaluated else smoothed(y, smooth))
      axes.plot(
        x, y,
        color=f'C{number % 10}',
        marker='o' if evaluated else '',
        markersize=3,
        linewidth=1.6 if evaluated else 1.0,
        alpha=1.0 if evaluated or len(metrics) == 1 else 0.6,
        label=run.name + (f' {metric}' if len(metrics) > 1 else ''),
      )  # fmt: skip
      drawn += 1
  if not drawn:
    raise UserError(_nothing(runs, metrics, axis))
  axes.set_xlabel(curves.AXES[axis])
  axes.set_ylabel(', '.join(metrics))
  axes.set_xscale('log' if 'x' in log else 'linear')
  axes.set_yscale('log' if 'y' in log else 'linear')
  axes.grid(alpha=0.3)
  if drawn <= 24:
    axes.legend(fontsize='small')
  try:
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
  except OSError as e:
    raise UserError(f'cannot write {output} ({e.strerror or e})') from e
  return drawn


def _nothing(runs: Sequence[Run], metrics: Sequence[str], axis: str) -> str:
  known = {name: None for run in runs for name in run.digest.last}
  known |= {name: None for run in runs for name in run.digest.final}
  for name in ('step', 'seconds'):
    known.pop(name, None)
  missing = [metric for metric in metrics if metric not in known]
  if missing:
    return (
      f'no run has {missing[0]!r}{hint(missing[0], known)}; they have '
      f'{", ".join(known) or "nothing yet"}'
    )
  return f'no run tells its {curves.AXES[axis]}; use --x=steps'
