"""Curves of runs as a picture; needs matplotlib (the extra `runs`)."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from craft_jax.errors import UserError, hint
from craft_jax.runs import compare, curves, metric_table
from craft_jax.runs.listing import Run
from craft_jax.runtime import extras, files

SUFFIXES = ('.png', '.svg', '.pdf')
_POINTS = 2000  # of a curve; more cannot be seen
# Colours of the runs, told apart by those who see few too (Okabe and Ito).
COLORS = (
  '#0072b2', '#d55e00', '#008a63', '#b8578f', '#b07a00', '#2f8fc4', '#7a5c2e',
  '#6b6b6b',
)  # fmt: skip
# The second eight runs are drawn dashed, the third dotted.
DASHES = ('solid', 'dashed', 'dotted')
_WITHIN = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # a decade


def label(metrics: Sequence[str]) -> str:
  """The metrics and their unit, if it is one."""
  units = {metric_table.find(metric).unit for metric in metrics}
  unit = units.pop() if len(units) == 1 else ''
  return ', '.join(metrics) + (f' ({unit})' if unit else '')


def counted(axis: Any) -> None:
  """Numbers as `200k` and `1.5M` on an axis."""
  from matplotlib import ticker

  axis.set_major_formatter(ticker.EngFormatter(sep=''))


def plain_ticks(axis: Any) -> None:
  """Plain numbers on a logarithmic axis, and enough of them."""
  from matplotlib import ticker

  low, high = axis.get_view_interval()
  # Within a decade or two, powers of ten alone would be too few.
  if high < 1.7 * low:
    axis.set_major_locator(ticker.MaxNLocator(7, steps=[1, 2, 5, 10]))
  elif high < 100 * low:
    between = _WITHIN if high < 10 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(ticker.LogLocator(subs=between, numticks=30))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_major_formatter(lambda value, _: f'{value:g}')


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
  with extras.needed('a plot', 'runs'):
    import matplotlib  # noqa: F401


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
    smooth: weight of the exponential mean, of training metrics only.
    log: axes that are logarithmic: '', 'x', 'y' or 'xy'.

  Raises:
    UserError: nothing to draw, or the file cannot be written.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 5.5), layout='constrained')
  axes = figure.add_subplot()
  drawn, names = 0, compare.short_names([run.name for run in runs])
  for number, run in enumerate(runs):
    for metric in metrics:
      x, y = curves.Series(run, metric).along(axis).points()
      if not len(x):
        continue
      evaluated = metric.startswith('val_')
      x, y = thinned(x, y if evaluated else smoothed(y, smooth))
      axes.plot(
        x, y,
        color=COLORS[number % len(COLORS)],
        linestyle=DASHES[number // len(COLORS) % len(DASHES)],
        marker='o' if evaluated else '',
        markersize=3,
        linewidth=1.6 if evaluated else 1.0,
        alpha=1.0 if evaluated or len(metrics) == 1 else 0.6,
        label=names[run.name] + (f' {metric}' if len(metrics) > 1 else ''),
      )  # fmt: skip
      drawn += 1
  if not drawn:
    raise UserError(_nothing(runs, metrics, axis))
  axes.set_xlabel(curves.AXES[axis])
  axes.set_ylabel(label(metrics))
  _scales(axes, axis, log)
  if drawn <= 24:
    axes.legend(fontsize='small')
  save(figure, output, dpi=150)
  return drawn


def save(figure: Any, output: str, dpi: int) -> None:
  """Writes a picture; its suffix decides the format, folders are made.

  Raises:
    OSError: the file cannot be written.
  """
  drawn = io.BytesIO()
  figure.savefig(drawn, dpi=dpi, format=pathlib.Path(output).suffix[1:])
  files.as_path(output).parent.mkdir(parents=True, exist_ok=True)
  files.write_atomic(output, drawn.getvalue())


def _scales(axes: Any, axis: str, log: str) -> None:
  axes.set_xscale('log' if 'x' in log else 'linear')
  axes.set_yscale('log' if 'y' in log else 'linear')
  for name, one in (('x', axes.xaxis), ('y', axes.yaxis)):
    if name in log:
      plain_ticks(one)
  if axis != 'seconds':
    counted(axes.xaxis)
  axes.grid(alpha=0.3)


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
