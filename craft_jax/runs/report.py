"""One HTML file about some runs: curves, differences, samples; no network."""

import importlib.resources
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from craft_jax.runs import compare, curves, family, metric_table
from craft_jax.runs.listing import Run, edits_of, sample_of
from craft_jax.runs.plot import COLORS, DASHES, thinned
from craft_jax.runtime import files, strict_json
from craft_jax.runtime.terminal import as_html

# Of the curves on a dark page: lighter ones of the order of `COLORS`.
_DARK = (
  '#4aa8e8', '#ff8a3d', '#2fc99b', '#e79cc8', '#f0b429', '#8fd3f7', '#c7a36b',
  '#b0b0b0',
)  # fmt: skip
_POINTS = 400  # of a curve
_LONG = 20  # characters of a name or value
_THINNED = (
  f'Curves of more than {_POINTS} points are shown as {_POINTS} means over '
  'stretches of equal length; so is what is read out.'
)


def page(runs: Sequence[Run], found: compare.Comparison, verdict: str) -> str:
  """The report as HTML that loads nothing.

  Args:
    runs: in the order of their colours.
    found: their comparison.
    verdict: the sentence that the comparison ends in; not shown of one run.
  """
  labels = compare.short_names([run.name for run in runs])
  names = [labels[run.name] for run in runs]
  data = {
    'axes': curves.AXES,
    'runs': [
      {'label': name, 'color': _color(i), 'dash': _dash(i)} | _worth(run)
      for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ],
    'charts': [
      {'title': title, 'series': series}
      for title, keys in metric_table.charts().items()
      if (series := _series(runs, keys))
    ],
  }
  # '</script>' in a name must not end the script that holds it.
  text = strict_json.dumps(data).replace('<', '\\u003c')
  notes = ''.join(f'<li>{as_html(note)}</li>' for note in found.notes)
  return file('report.html').format(
    title=as_html(_title(names)),
    style=file('report.css'),
    light=_palette(COLORS),
    dark=_palette(_DARK),
    verdict=_verdict(verdict) if len(runs) > 1 else '',
    notes=f'<ul>{notes}</ul>' if notes else '',
    runs=_runs_table(runs, names),
    differences=_differences(found),
    axes=''.join(
      f'<option value="{axis}">{as_html(name)}</option>'
      for axis, name in curves.AXES.items()
    ),
    thinned=f'<p class="soft">{_THINNED}</p>' if _is_thinned(data) else '',
    family=_family(runs, names),
    samples=_edits(runs, names) + _samples(runs, names),
    data=text,
    script=file('report.js'),
  )


def file(name: str) -> str:
  """The text of a file that the report is made of."""
  folder = importlib.resources.files('craft_jax.runs') / 'page'
  return (folder / name).read_text(encoding='utf-8')


def _palette(colors: Sequence[str]) -> str:
  return '; '.join(f'--c{i}: {color}' for i, color in enumerate(colors))


def _verdict(text: str) -> str:
  """A flag in it is not broken at its hyphens."""
  shown = re.sub(r'--[\w.]+', r'<span class="flag">\g<0></span>', as_html(text))
  return f'<p class="verdict">{shown}</p>'


def _is_thinned(data: Mapping[str, Any]) -> bool:
  return any(
    len(series['y']) == _POINTS
    for chart in data['charts']
    for series in chart['series']
  )


def _color(number: int) -> str:
  return f'var(--c{number % len(COLORS)})'


def _dash(number: int) -> str:
  return DASHES[number // len(COLORS) % len(DASHES)]


def _title(names: Sequence[str]) -> str:
  if len(names) == 1:
    return names[0]
  shown = [*names[:4], *(['...'] if len(names) > 4 else [])]
  return f'{len(names)} runs: {", ".join(shown)}'


def _worth(run: Run) -> dict[str, float | None]:
  """Characters and FLOPs of a step, None where a run does not tell."""
  found: dict[str, float | None] = {}
  for axis in ('chars', 'flops'):
    parts = [run.unit('tokens_per_step'), run.unit(f'{axis}_per_token')]
    known = [part for part in parts if part is not None]
    found[axis] = math.prod(known) if len(known) == len(parts) else None
  return found


def _series(runs: Sequence[Run], keys: Sequence[str]) -> list[dict[str, Any]]:
  found = []
  both = len(keys) > 1
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
          'name': ('validation' if evaluated else 'training') if both else '',
          'dots': evaluated,
          'steps': _numbers(thinned(steps, y, _POINTS)[0]),
          'y': _numbers(thinned(steps, y, _POINTS)[1]),
          # Present only where every point has its time.
          'seconds': _numbers(thinned(seconds, timed, _POINTS)[0])
          if len(timed) == len(y)
          else None,
        }
      )
  return found


def _numbers(values: np.ndarray) -> list[float | None]:
  """Eight digits: what is read out, with four decimals, is rounded once."""
  return [
    float(f'{value:.8g}') if math.isfinite(value) else None for value in values
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
    style = f'border-top-color:{_color(i)};border-top-style:{_dash(i)}'
    key = f'<span class="key" style="{style}"></span>'
    cells = [
      _figure(facts['loss']),
      _figure(facts['final']),
      facts['status'],
      f'{_count(facts["step"])} of {_count(facts["steps"])}',
      _count(facts['params']),
      _count(facts['speed']),
      _count(facts['seconds']),
    ]
    rows.append([key + _wrapped(name), *map(as_html, cells)])
  # What a phone shows without scrolling comes first.
  head = ('run', 'best loss', 'last loss', 'status', 'step', 'parameters',
          'characters/s', 'seconds')  # fmt: skip
  return _table(head, rows)


def _differences(found: compare.Comparison) -> str:
  if sum(len(group.results) for group in found.groups) < 2:
    return ''
  kinds: list[tuple[str, Mapping[str, list[Any]]]] = [
    ('', found.settings),
    ('', found.circumstances),
    (' (no effect)', found.reporting),
  ]
  rows = [
    [as_html(name + mark), *(_wrapped(_short(v)) for v in values)]
    for mark, kind in kinds
    for name, values in kind.items()
  ]
  head = ['', *(_wrapped(g.label) for g in found.groups)]
  if rows:
    text = f'<div class="wide" tabindex="0">{_table(head, rows)}</div>'
  else:
    text = '<p>nothing but the seed</p>'
  return f'<h2>What differs</h2>{text}'


def _family(runs: Sequence[Run], names: Sequence[str]) -> str:
  """Which run started from which, a nested list; '' if none did."""
  shown = {
    files.absolute(run.name): f'<strong style="color:{_color(i)}">'
    f'{as_html(name)}</strong>'
    for i, (run, name) in enumerate(zip(runs, names, strict=True))
  }

  def item(member: family.Member) -> str:
    name = shown.get(member.run)
    name = name or f'<span class="soft">{as_html(member.run)}</span>'
    step = '' if member.step is None else f', from step {member.step:,}'
    return f'<li>{name}{step}{items(member.children)}</li>'

  def items(members: Sequence[family.Member]) -> str:
    return f'<ul>{"".join(map(item, members))}</ul>' if members else ''

  found = items(family.families(runs))
  return f'<h2>Family</h2><div class="family">{found}</div>' if found else ''


def _samples(runs: Sequence[Run], names: Sequence[str]) -> str:
  found = ''.join(map(_sample, runs, names))
  if not found:
    return ''
  return f'<h2>Samples</h2><div class="samples">{found}</div>'


def _sample(run: Run, name: str) -> str:
  found = sample_of(run)
  if not found:
    return ''
  step, text = found
  head = f'{as_html(name)}, step {step}'
  return f'<div><h3>{head}</h3><pre>{as_html(text)}</pre></div>'


def _edits(runs: Sequence[Run], names: Sequence[str]) -> str:
  """The most frequent edits of the last full evaluation of each run."""
  found = ''.join(map(_edits_of, runs, names))
  if not found:
    return ''
  return f'<h2>Edits</h2><div class="samples">{found}</div>'


def _edits_of(run: Run, name: str) -> str:
  found = edits_of(run)
  if not found or not found[1]:
    return ''
  step, edits = found
  rows = [
    [
      *(_wrapped(side or '∅') for side in (reference, completion)),
      _count(times),
    ]
    for reference, completion, times in edits
  ]
  table = _table(('reference', 'completion', 'count'), rows)
  return f'<div><h3>{as_html(name)}, step {step}</h3>{table}</div>'


def _wrapped(text: str) -> str:
  """Escaped HTML in which a long text does not widen its column."""
  escaped = as_html(text)
  if len(text) <= _LONG:
    return escaped
  return f'<span class="long">{escaped}</span>'


def _figure(value: float | None) -> str:
  return '-' if value is None else f'{value:.4f}'


def _count(value: float | None) -> str:
  return '-' if value is None else f'{value:,.0f}'


def _short(value: Any) -> str:
  return '-' if value is None else str(value)
