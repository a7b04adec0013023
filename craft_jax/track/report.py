"""One HTML file about some runs: curves, differences, samples; no network."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from craft_jax.track import compare, curves
from craft_jax.track.plot import thinned
from craft_jax.track.report_page import PAGE, SCRIPT, STYLE
from craft_jax.track.runs import Run, sample_of

_POINTS = 400  # of a curve
# Told apart by those who see few colours too, on light and dark (Okabe, Ito).
_COLORS = (
  '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8a6d3b',
  '#7f7f7f',
)  # fmt: skip
# Title, then the keys of its curves.
_CHARTS = (
  ('Loss, nats per symbol', ('nll', 'val_loss')),
  ('Bits per byte', ('bpb', 'val_bpb')),
  ('Accuracy', ('accuracy', 'val_accuracy')),
  ('Learning rate', ('learning_rate',)),
  ('Norm of the gradient, before clipping', ('grad_norm',)),
  ('Norm of the update', ('update_norm',)),
  ('Norm of the parameters', ('param_norm',)),
  ('Characters per second', ('chars_per_second',)),
)


def page(runs: Sequence[Run], found: compare.Comparison, verdict: str) -> str:
  """The report as HTML that loads nothing.

  Args:
    runs: in the order of their colours.
    found: their comparison.
    verdict: the sentence that it ends in.
  """
  labels = compare.short_names([run.name for run in runs])
  names = [labels[run.name] for run in runs]
  data = {
    'axes': curves.AXES,
    'runs': [
      {'label': name, 'color': _color(i)} | _worth(run)
      for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ],
    'charts': [
      {'title': title, 'series': series}
      for title, keys in _CHARTS
      if (series := _series(runs, keys))
    ],
  }
  # '</script>' in a name must not end the script that holds it.
  text = json.dumps(data, allow_nan=False).replace('<', '\\u003c')
  notes = ''.join(f'<li>{html.escape(note)}</li>' for note in found.notes)
  return PAGE.format(
    title=html.escape(f'{len(runs)} runs: {", ".join(names[:4])}'),
    style=STYLE,
    verdict=html.escape(verdict),
    notes=f'<ul>{notes}</ul>' if notes else '',
    runs=_runs_table(runs, names),
    differences=_differences(found),
    axes=''.join(
      f'<option value="{axis}">{html.escape(name)}</option>'
      for axis, name in curves.AXES.items()
    ),
    samples=''.join(map(_sample, runs, names)),
    data=text,
    script=SCRIPT,
  )


def _color(number: int) -> str:
  return _COLORS[number % len(_COLORS)]


def _worth(run: Run) -> dict[str, float | None]:
  """Characters and FLOPs of a step, None where a run does not tell."""
  found: dict[str, float | None] = {}
  for axis in ('chars', 'flops'):
    parts = [run.unit('symbols_per_step'), run.unit(f'{axis}_per_symbol')]
    known = [part for part in parts if part is not None]
    found[axis] = math.prod(known) if len(known) == len(parts) else None
  return found


def _series(runs: Sequence[Run], keys: Sequence[str]) -> list[dict[str, Any]]:
  found = []
  for number, run in enumerate(runs):
    for key in keys:
      read = curves.Series(run, key)
      steps, y = read.along('steps').points()
      if not len(steps):
        continue
      seconds, timed = read.along('seconds').points()
      evaluated = key.startswith('val_')
      found.append(
        {
          'run': number,
          'name': 'validation' if evaluated else '',
          'dots': evaluated,
          'steps': _numbers(thinned(steps, y, _POINTS)[0]),
          'y': _numbers(thinned(steps, y, _POINTS)[1]),
          # As long as the figures, or there is no such axis.
          'seconds': _numbers(thinned(seconds, timed, _POINTS)[0])
          if len(timed) == len(y)
          else None,
        }
      )
  return found


def _numbers(values: np.ndarray) -> list[float | None]:
  """Six digits are more than a picture shows."""
  return [
    float(f'{value:.6g}') if math.isfinite(value) else None for value in values
  ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Cells are HTML."""
  lines = [f'<tr>{"".join(f"<th>{cell}</th>" for cell in head)}</tr>']
  for row in rows:
    lines.append(f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>')
  return f'<table>{"".join(lines)}</table>'


def _runs_table(runs: Sequence[Run], names: Sequence[str]) -> str:
  rows = []
  for i, (run, name) in enumerate(zip(runs, names, strict=True)):
    facts = run.facts
    key = f'<span class="key" style="background:{_color(i)}"></span>'
    cells = [
      facts['status'],
      f'{facts["step"]} of {facts["steps"]}',
      _figure(facts['loss']),
      _figure(facts['final']),
      _count(facts['params']),
      _count(facts['speed']),
      _count(facts['seconds']),
    ]
    rows.append([key + html.escape(name), *map(html.escape, cells)])
  head = ('run', 'status', 'step', 'best loss', 'last loss', 'parameters',
          'characters/s', 'seconds')  # fmt: skip
  return _table(head, rows)


def _differences(found: compare.Comparison) -> str:
  kinds: list[tuple[str, Mapping[str, list[Any]]]] = [
    ('', found.settings),
    ('', found.circumstances),
    (' (no effect)', found.reporting),
  ]
  rows = [
    [html.escape(name + mark), *(html.escape(_short(v)) for v in values)]
    for mark, kind in kinds
    for name, values in kind.items()
  ]
  if not rows:
    return '<p>nothing but the seed</p>'
  return _table(['', *(html.escape(g.label) for g in found.groups)], rows)


def _sample(run: Run, name: str) -> str:
  found = sample_of(run)
  if not found:
    return ''
  step, text = found
  shown = text.encode(errors='replace').decode()
  head = f'{html.escape(name)}, step {step}'
  return f'<div><h3>{head}</h3><pre>{html.escape(shown)}</pre></div>'


def _figure(value: float | None) -> str:
  return '-' if value is None else f'{value:.4f}'


def _count(value: float | None) -> str:
  return '-' if value is None else f'{value:,.0f}'


def _short(value: Any) -> str:
  return '-' if value is None else str(value)
