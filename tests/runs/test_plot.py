"""The axes of `craft runs plot`: plain numbers, enough of them, units."""

import pytest
from matplotlib.figure import Figure

from craft_jax.runs import plot


@pytest.mark.parametrize(
  'limits, shown',
  [
    ((1.49, 1.71), {'1.5', '1.6', '1.7'}),
    ((1.05, 5.6), {'1.2', '1.5', '2', '3', '5'}),
    ((0.9, 50), {'1', '2', '5', '10', '20', '50'}),
    ((1, 1e6), {'1', '100'}),
  ],
)
def test_a_logarithmic_axis_has_plain_numbers(limits, shown):
  figure = Figure()
  axes = figure.add_subplot(yscale='log', ylim=limits)
  plot.plain_ticks(axes.yaxis)
  figure.draw_without_rendering()
  seen = [
    label.get_text()
    for label in axes.get_yticklabels()
    if limits[0] <= label.get_position()[1] <= limits[1]
  ]
  assert shown <= set(seen) and 3 <= len(seen) <= 12
  assert not any('$' in text for text in seen)


def test_large_numbers_are_short():
  figure = Figure()
  axes = figure.add_subplot(xlim=(0, 2.4e6))
  plot.counted(axes.xaxis)
  figure.draw_without_rendering()
  assert '1M' in [label.get_text() for label in axes.get_xticklabels()]


def test_a_label_has_the_unit_that_all_share():
  assert plot.label(['loss', 'val_loss']) == 'loss, val_loss (nats per token)'
  assert plot.label(['val_bpb']) == 'val_bpb (bits per byte)'
  assert plot.label(['loss', 'bpb']) == 'loss, bpb'
  assert plot.label(['grad_norm']) == 'grad_norm'
