"""Every metric of training and of evaluation, declared once.

The rows of `metrics.jsonl`, the progress bar, what `craft eval` prints, the
columns of `craft runs list`, plots and the report read this table.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

TRAINING, EVALUATION = 'training', 'evaluation'
Sums = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric; its key in a row of an evaluation begins with `val_`.

  Attributes:
    help: what it is.
    unit: of its values, for the label of an axis.
    form: format of a value.
    at: the rows that have it.
    of: the metric of sums, None where the text does not give it; by default
      it is no function of sums and is measured where it arises.
    needs: the sums without which there is no such metric.
    higher: whether more is better; None where neither is.
    bar: format on the progress bar; '' if it is not shown.
    val_bar: the same of the last evaluation.
    chart: title in the report; '' for none.
    trained: the metric of training that one of evaluation compares with,
      where that has another name.
  """

  help: str
  unit: str = ''
  form: str = '.4f'
  at: tuple[str, ...] = (TRAINING,)
  of: Callable[[Sums], float | None] | None = None
  needs: tuple[str, ...] = ()
  higher: bool | None = None
  bar: str = ''
  val_bar: str = ''
  chart: str = ''
  trained: str = ''


def _per(sums: Sums, unit: str) -> float | None:
  """Bits (-log2 p) per character or byte; None where none was counted."""
  number = sums.get(unit)
  return sums['nll'] / math.log(2) / number if number else None


def _perplexity(sums: Sums) -> float:
  nats = sums['nll'] / sums['count']
  return math.exp(nats) if nats < 700 else math.inf


_BOTH = (TRAINING, EVALUATION)
METRICS: dict[str, Metric] = {
  'loss': Metric(
    'the training objective, with label smoothing and z-loss; of an '
    'evaluation without them',
    'nats per token', at=_BOTH, of=lambda s: s['loss'] / s['count'],
    higher=False, bar='loss {:.4f}', val_bar='val {:.4f}',
    chart='Loss, nats per token', trained='nll',
  ),
  'nll': Metric(
    'negative log-likelihood: the loss without smoothing and z-loss',
    'nats per token', of=lambda s: s['nll'] / s['count'], higher=False,
  ),
  'bpc': Metric(
    "the same per character; in training by the split's own ratio",
    'bits per character', at=_BOTH, of=lambda s: _per(s, 'chars'),
    higher=False, bar='{:.3f} bits/char',
  ),
  'bpb': Metric(
    "the same per UTF-8 byte; in training by the split's own ratio",
    'bits per byte', at=_BOTH, of=lambda s: _per(s, 'bytes'), higher=False,
    val_bar='{:.3f} val bits/byte', chart='Bits per byte',
  ),
  'perplexity': Metric(
    'exponential of the nats', 'perplexity per token', '.3f',
    at=(EVALUATION,), of=_perplexity, higher=False,
  ),
  'accuracy': Metric(
    'share of tokens that are the most likely one', form='.2%', at=_BOTH,
    of=lambda s: s['correct'] / s['count'], needs=('correct',), higher=True,
    chart='Accuracy',
  ),
  'exact_match': Metric(
    'share of prompts whose greedy completion is one of their references '
    '(`data.format=pairs`)', 'exact match', '.2%', at=(EVALUATION,),
    higher=True, val_bar='{:.1%} exact', chart='Exact match',
  ),
  'cer': Metric(
    'character error rate of these completions', 'character error rate',
    '.2%', at=(EVALUATION,), higher=False, chart='Character error rate',
  ),
  'wer': Metric(
    'word error rate of these completions', 'word error rate', '.2%',
    at=(EVALUATION,), higher=False, chart='Word error rate',
  ),
  'task_rows': Metric(
    'prompts that were completed', 'prompts', ',.0f', at=(EVALUATION,),
  ),
  'count': Metric(
    'tokens that were predicted', 'tokens', ',.0f', at=(EVALUATION,),
    of=lambda s: s['count'],
  ),
  'learning_rate': Metric(
    'of AdamW, also under Muon', form='.4g', chart='Learning rate',
  ),
  'grad_norm': Metric(
    'global norm of the gradient, before clipping',
    chart='Norm of the gradient, before clipping',
  ),
  'update_norm': Metric(
    'global norm of the update, at multiples of `log.every`',
    form='.4g', chart='Norm of the update',
  ),
  'param_norm': Metric(
    'global norm of the parameters, at multiples of `log.every`',
    chart='Norm of the parameters',
  ),
  'chars_per_second': Metric(
    'speed of the call; compilation, evaluation and saving excluded',
    'characters per second', ',.0f', higher=True, bar='{:,.0f} chars/s',
    chart='Characters per second',
  ),
  'utilisation': Metric(
    "model FLOP/s over the peak, where the device's peak is known",
    form='.1%', higher=True, bar='{:.1%} of peak',
  ),
  'data_wait_seconds': Metric(
    'time the loop has waited for data so far', 'seconds', '.1f',
  ),
  'seconds': Metric(
    'time the run has been going, over all its starts: steps, compilation, '
    'evaluation, saving; in rows of evaluations too',
    'seconds', '.1f',
  ),
}  # fmt: skip


def of_sums(sums: Mapping[str, Any], at: str) -> dict[str, float | None]:
  """The metrics of sums over tokens.

  Args:
    sums: `loss` and `nll` (nats), `count` and, where known, `correct`, `chars`
      and `bytes`; arrays are passed over.
    at: `TRAINING` or `EVALUATION`.
  """
  known = {k: float(v) for k, v in sums.items() if not np.ndim(v)}
  return {
    name: metric.of(known)
    for name, metric in METRICS.items()
    if metric.of and at in metric.at and known.keys() >= set(metric.needs)
  }


def keys(at: str) -> dict[str, Metric]:
  """The metrics by their key in the rows of training or of evaluation."""
  prefix = 'val_' if at == EVALUATION else ''
  return {prefix + name: m for name, m in METRICS.items() if at in m.at}


def find(key: str) -> Metric:
  """The metric of a key of rows; an empty one if it is unknown."""
  name = key.removeprefix('val_').removesuffix('_strided')
  return METRICS.get(name, Metric('', form='g'))


def best(key: str) -> Callable[..., Any]:
  """`max` where a higher value of the metric is better, else `min`."""
  return max if find(key).higher else min


def rank(key: str, values: Mapping[str, Any]) -> float:
  """Orders evaluations by a metric: the least is the best.

  Infinite where the metric is missing or not finite.
  """
  value = values.get(key)
  if value is None or not math.isfinite(value):
    return math.inf
  return -value if find(key).higher else value


def training_of(key: str) -> str:
  """The key of training for one of evaluation: `nll` for `val_loss`."""
  return find(key).trained or key.removeprefix('val_')


def ranking() -> list[str]:
  """The keys of evaluations that can rank runs."""
  found = keys(EVALUATION).items()
  return [key for key, metric in found if metric.higher is not None]


def bar_parts(values: Mapping[str, Any]) -> list[str]:
  """What the progress bar shows of a row, the most wanted first."""
  shown = {key: m.bar for key, m in keys(TRAINING).items()}
  shown |= {key: m.val_bar for key, m in keys(EVALUATION).items()}
  return [
    form.format(values[key])
    for key, form in shown.items()
    if form and values.get(key) is not None
  ]


def lines(values: Mapping[str, Any]) -> list[str]:
  """An evaluation for people, by keys without `val_`, a line for each.

  The interval of a metric follows it, where `NAME_low` and `NAME_high` are
  given.
  """

  def interval(name: str, form: str) -> str:
    low, high = (values.get(f'{name}_{end}') for end in ('low', 'high'))
    return '' if low is None else f' ({low:{form}} to {high:{form}})'

  return [
    f'{values[name]:{metric.form}} {metric.unit or name}'
    + interval(name, metric.form)
    for name, metric in METRICS.items()
    if EVALUATION in metric.at
    and metric.higher is not None
    and values.get(name) is not None
  ]


def charts() -> dict[str, list[str]]:
  """The charts of the report: title, then the keys of its curves."""
  return {
    metric.chart: [
      *([metric.trained or name] if TRAINING in metric.at else []),
      *([f'val_{name}'] if EVALUATION in metric.at else []),
    ]
    for name, metric in METRICS.items()
    if metric.chart
  }
