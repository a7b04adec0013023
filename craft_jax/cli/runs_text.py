"""Runs and their comparison as text for a terminal or a pipe."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from craft_jax.runs import compare, curves, delete, layout, metric_table
from craft_jax.runs.listing import Run, sample_of
from craft_jax.runs.progress import clock
from craft_jax.runs.verdict import Result

_UNITS = ((86400.0, 'd'), (3600.0, 'h'), (60.0, 'min'))
_COLUMNS = 80  # of sentences
_MOST_GROUPS = 4  # side by side; more are listed


def table(
  head: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1
) -> list[str]:
  """Aligned columns: the first `left` to the left, the others to the right."""
  cells = [list(head), *([str(cell) for cell in row] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    '  '.join(
      f'{cell:<{w}}' if i < left else f'{cell:>{w}}'
      for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in cells
  ]


def count(value: float | None) -> str:
  """`950`, `12.3k`, `4.56M`, `7.89G`, `1.2e+15`."""
  if value is None:
    return '-'
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if 1e13 > value >= size:
      return f'{value / size:.3g}{unit}' if value < 1e12 else f'{value:.3g}'
  return f'{value:.3g}' if value >= 1e13 else f'{value:.0f}'


def age(seconds: float) -> str:
  """`12 s`, `3.4 min`, `5.6 h` or `7.8 d`."""
  for size, unit in _UNITS:
    if seconds >= size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds:.0f} s'


def size(number: int) -> str:
  """`12.3 MB`."""
  return f'{number / 1e6:.1f} MB'


def figure(value: float | None) -> str:
  """A loss, or a dash."""
  return '-' if value is None else f'{value:.4f}'


def fact(key: str, value: Any) -> str:
  """A fact of a run as a cell of a table."""
  if value is None:
    return '-'
  if key in ('params', 'speed'):
    return count(value)
  if key == 'age':
    return age(value)
  if key == 'seconds':
    return clock(value)
  if key in ('loss', 'final', 'bpb', 'train_loss'):
    return figure(value)
  if key == 'git_commit':
    return value[:10] + ('+' if value.endswith('+') else '')
  if isinstance(value, float):
    return format(value, metric_table.find(key).form)
  return str(value)


def listing(facts: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
  """A line per run."""
  rows = [[fact(key, one.get(key)) for key in keys] for one in facts]
  return '\n'.join(table(keys, rows, left=2))


# --- one run -----------------------------------------------------------------

_BARS = '▁▂▃▄▅▆▇█'


def sparkline(values: Sequence[float], width: int = 60) -> str:
  """The course of a curve in one line."""
  if not len(values):
    return ''
  step = max(len(values) / width, 1.0)
  shown = [values[int(i * step)] for i in range(int(len(values) / step))]
  low, high = min(shown), max(shown)
  scale = (len(_BARS) - 1) / ((high - low) or 1.0)
  return ''.join(_BARS[round((value - low) * scale)] for value in shown)


def show(run: Run, changed: Mapping[str, Any]) -> str:
  """The page of one run: state, speed, results, settings, sample.

  Args:
    run: the run.
    changed: its settings that are not the defaults.
  """
  facts, meta, digest = run.facts, run.metadata, run.digest
  starts = [*meta.get('earlier', []), meta]
  status = run.status
  if run.status == layout.DEAD:
    status += ': killed, or its machine went; the same command goes on'
  elif run.status not in (layout.FINISHED, layout.RUNNING):
    status += f': {meta.get("exit_reason")}'
  lines = [
    ('run', run.name),
    ('status', status),
    ('step', f'{facts["step"]} of {facts["steps"]}'),
    ('started', f'{facts["started"]}, {len(starts)} start(s)'),
    ('last wrote', f'{age(run.age)} ago'),
    ('command', ' '.join(map(str, meta.get('command', [])[1:]))),
    ('host', f'{meta.get("host")}, {meta.get("num_devices")} x '
             f'{meta.get("device_kind")}, {meta.get("precision")}'),
    ('code', f'{facts["git_commit"] or "no checkout"}'
             + (f', changes in {meta["git_diff"]}' if meta.get('git_diff')
                else '')),
    ('text', meta.get('corpus', '-')),
    *([('from', facts['parent'])] if facts['parent'] else []),
    ('parameters', count(facts['params'])),
    ('speed', f'{count(facts["speed"])} characters per second'),
    ('time', clock(facts['seconds'] or 0)),
    ('checkpoints',
     ', '.join(map(str, delete.checkpoints(run.name))) or 'none'),
  ]  # fmt: skip
  for name, row in (('best', digest.best), ('last', digest.final)):
    if row:
      text = f'{figure(row.get("val_loss"))} nats at step {row["step"]}'
      if row.get('val_bpb') is not None:
        text += f', {figure(row["val_bpb"])} bits per byte'
      lines.append((f'{name} valid', text))
  _, losses = curves.Series(run, 'loss').along('steps').points()
  if len(losses):
    ends = f'{losses[0]:.3f} to {losses[-1]:.3f}'
    lines.append(('loss', f'{sparkline(losses.tolist())}  {ends}'))
  shown = [f'{name:<12} {value}' for name, value in lines]
  shown += ['', 'settings that differ from the defaults']
  shown += [f'  {name} = {value!r}' for name, value in changed.items()]
  sample = sample_of(run)
  if sample:
    shown += ['', f'--- sample at step {sample[0]} ---', sample[1]]
  return '\n'.join(shown)


# --- several -----------------------------------------------------------------


def comparison(found: compare.Comparison, *, ranked: bool = False) -> str:
  """The comparison; its last lines say which is better.

  Args:
    found: what is shown.
    ranked: best first, below each other, however few there are.
  """
  side = not ranked and len(found.groups) <= _MOST_GROUPS
  parts = _side_by_side(found) if side else _below_each_other(found)
  said = [*(f'note: {note}' for note in found.notes), verdict(found)]
  wrapped = [
    textwrap.fill(
      line, _COLUMNS, break_long_words=False, break_on_hyphens=False
    )
    for line in said
  ]
  return '\n'.join([*parts, '', *wrapped])


def _names(found: compare.Comparison) -> list[str]:
  return [group.label for group in found.groups]


def _side_by_side(found: compare.Comparison) -> list[str]:
  groups = found.groups

  def facts(key: str) -> list[str]:
    return [fact(key, g.results[0].run.facts[key]) for g in groups]

  metric = found.metric
  rows: list[list[str]] = [['what differs', *([''] * len(groups))]]
  for kind in (found.settings, found.circumstances, found.reporting):
    mark = ' (no effect)' if kind is found.reporting else ''
    for name, values in kind.items():
      rows.append([f'  {name}{mark}', *(_short(value) for value in values)])
  if len(rows) == 1:
    rows = [['nothing differs but the seed', *([''] * len(groups))]]
  rows.append([''] * (len(groups) + 1))
  if any(len(g.results) > 1 for g in groups):
    rows += [
      ['seeds that finished', *(str(len(g.values)) for g in groups)],
      [f'best {metric}, mean', *(figure(g.mean) for g in groups)],
      ['  standard deviation', *(figure(g.deviation) for g in groups)],
    ]
  else:
    rows += [
      [f'best {metric}', *(_best(g.results[0]) for g in groups)],
      [f'last {metric}', *(figure(g.results[0].final) for g in groups)],
    ]
  for equal in found.equal:
    where = f'at {count(equal.at)} {curves.AXES[equal.axis]}'
    trained = metric_table.training_of(metric)
    rows += [
      [where, *([''] * len(groups))],
      [f'  {metric}', *map(figure, equal.evaluated)],
      [f'  training {trained}', *map(figure, equal.trained)],
    ]
  rows += [
    ['step', *facts('step')],
    ['parameters', *facts('params')],
    ['characters/s', *facts('speed')],
    ['time', *facts('seconds')],
  ]
  return table(['', *_names(found)], rows)


def _best(result: Result) -> str:
  at = '' if result.best_step is None else f' (step {result.best_step})'
  return figure(result.best) + at


def _short(value: Any) -> str:
  text = '-' if value is None else str(value)
  return text if len(text) <= 24 else text[:23] + '…'


def _below_each_other(found: compare.Comparison) -> list[str]:
  differing = found.settings | found.circumstances
  order = sorted(
    range(len(found.groups)),
    key=lambda i: _rank(found.groups[i].mean, found.metric),
  )
  steps = next((e for e in found.equal if e.axis == 'steps'), None)
  head = ['run', f'best {found.metric}', 'deviation']
  head += [f'at step {steps.at:.0f}'] if steps else []
  rows = []
  for i in order:
    group = found.groups[i]
    row = [group.label, figure(group.mean), figure(group.deviation)]
    row += [figure(steps.evaluated[i])] if steps else []
    rows.append(row + [_short(values[i]) for values in differing.values()])
  return table([*head, *differing], rows)


def _rank(mean: float | None, metric: str) -> float:
  if mean is None:
    return float('inf')
  return -mean if metric_table.find(metric).higher else mean


def verdict(found: compare.Comparison) -> str:
  """Which is better, and whether that is more than noise."""
  groups, said = found.groups, found.verdict
  if len(groups) == 1:
    group = groups[0]
    if group.deviation is None:
      return (
        'one run that is finished and evaluated, or none: nothing to compare'
      )
    return (
      f'one configuration, {len(group.values)} seeds: best {found.metric} '
      f'{group.mean:.4f} with a standard deviation of {group.deviation:.4f}'
    )
  if said.better is None or said.other is None:
    known = sum(group.mean is not None for group in groups)
    return 'no verdict: ' + (
      'they are not comparable'
      if known > 1
      else 'fewer than two of them are finished and evaluated'
    )
  better, other = groups[said.better], groups[said.other]
  if not said.difference:
    return f'{better.label} and {other.label} are equal in {found.metric}'
  word = 'higher' if metric_table.find(found.metric).higher else 'lower'
  text = (
    f'{better.label} is better: its best {found.metric} is {better.mean:.4f}, '
    f'{said.difference:.4f} {word} than that of {other.label}; '
  )
  if said.exceeds is None:
    return text + (
      'with one seed each nobody knows whether that is more than noise: train '
      'both with another --config.seed'
    )
  more = 'more' if said.exceeds else 'not more'
  return (
    text + f'{more} than the spread of the seeds explains ({said.margin:.4f})'
  )


def items(found: Sequence[delete.Item], deleted: bool) -> str:
  """A table of what was deleted, or would be."""
  rows = [[item.path, item.why, size(item.bytes)] for item in found]
  total = size(sum(item.bytes for item in found))
  done = (
    f'deleted {total}' if deleted else f'{total}; --yes deletes, nothing was'
  )
  return '\n'.join([*table(['path', 'why', 'size'], rows, left=2), done])
