"""A scaling law and its runs as a picture; needs matplotlib."""

import numpy as np

from craft_jax.runs import plot
from craft_jax.runs.scaling import law as law_lib
from craft_jax.runs.scaling.observations import Study
from craft_jax.runtime import extras


def draw(study: Study, output: str) -> None:
  """Loss by data, a curve for each size; and by FLOPs, with the best split.

  Args:
    study: what is shown.
    output: the file; its suffix decides the format.

  Raises:
    OSError: the file cannot be written.
  """
  with extras.needed('a plot', 'runs'):
    from matplotlib.figure import Figure

  figure = Figure(figsize=(11, 4.8), layout='constrained')
  left, right = figure.subplots(1, 2)
  _by_data(left, study)
  _by_flops(right, study)
  for axes in (left, right):
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_ylabel(plot.label([study.points.metric]))
    plot.plain_ticks(axes.yaxis)
    plot.plain_ticks(axes.xaxis)
    plot.counted(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
  plot.save(figure, output, dpi=110)


def _by_data(axes, study: Study) -> None:
  points, law = study.points, study.law
  sizes = sorted(set(points.params))
  span = np.geomspace(points.tokens.min() / 1.5, points.tokens.max() * 1.5)
  shades = _shades(len(sizes))
  for size, shade in zip(sizes, shades, strict=True):
    mine = points.params == size
    axes.plot(points.tokens[mine], points.loss[mine], 'o', color=shade)
    axes.plot(span, law.loss(size, span), color=shade, label=f'N = {size:,.0f}')
  axes.set_xlabel('D, tokens read')
  axes.set_title('runs (dots) and the law (lines)', fontsize='medium')


def _by_flops(axes, study: Study) -> None:
  points = study.points
  sizes = sorted(set(points.params))
  shades = dict(zip(sizes, _shades(len(sizes)), strict=True))
  axes.scatter(
    points.flops, points.loss, color=[shades[size] for size in points.params]
  )
  span = np.geomspace(points.flops.min(), max(points.flops.max(), study.flops))
  best, *draws = np.array(
    [
      [law_lib.best_split(law, study.cost, flops).loss for flops in span]
      for law in (study.law, *study.draws)
    ]
  )
  axes.plot(span, best, 'k', label='best split of N and D')
  low, high = np.transpose(
    [law_lib.interval(losses) for losses in np.transpose(draws)]
  )
  axes.fill_between(
    span, low, high, color='k', alpha=0.12,
    label=f'{law_lib.COVERED:.0%} interval',
  )  # fmt: skip
  axes.plot(study.flops, study.best.loss, 'k*', ms=12, label='the budget')
  axes.set_xlabel('FLOPs of training')
  axes.set_title('loss by cost', fontsize='medium')


def _shades(count: int):
  from matplotlib import colormaps

  return colormaps['viridis'](np.linspace(0, 0.85, count))
