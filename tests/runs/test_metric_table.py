"""The one table of metrics: what it derives, and the page that shows it."""

import pathlib

import pytest

from craft_jax.runs import metric_table
from craft_jax.runs.metric_table import EVALUATION, METRICS, TRAINING

_PAGE = pathlib.Path(__file__).parents[2] / 'docs/training.md'
_SUMS = {'loss': 8.0, 'nll': 6.0, 'count': 4.0, 'chars': 4.0}


def test_metrics_of_sums():
  found = metric_table.of_sums(_SUMS, TRAINING)
  assert found['loss'] == 2.0 and found['nll'] == 1.5
  assert found['bpc'] == pytest.approx(1.5 * 1.442695)
  assert found['bpb'] is None  # no bytes were counted
  assert 'accuracy' not in found and 'perplexity' not in found
  found = metric_table.of_sums(_SUMS | {'correct': 3.0}, EVALUATION)
  assert found['accuracy'] == 0.75 and 'nll' not in found


def test_what_a_key_of_rows_is():
  assert metric_table.find('val_loss_strided') is METRICS['loss']
  assert metric_table.find('model.width').unit == ''
  assert metric_table.best('val_accuracy') is max
  assert metric_table.best('val_bpb') is min
  assert metric_table.training_of('val_loss') == 'nll'
  assert metric_table.training_of('val_bpb') == 'bpb'
  assert 'val_count' not in metric_table.ranking()


def test_the_page_has_the_table():
  rows = [
    f'| `{name}` | {" and ".join(m.at)} | {m.unit} | {m.help} |'
    for name, m in METRICS.items()
  ]
  head = '| key | rows of | unit | meaning |\n|---|---|---|---|'
  assert '\n'.join([head, *rows, '']) in _PAGE.read_text()
