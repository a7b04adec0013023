"""The tables of docs/benchmarks.md, from the results that are kept.

  python benchmarks/tables.py [--write PAGE | --check PAGE]

A table for every machine of benchmarks/results/, and a sentence, by
sentences.toml, for every figure. Nothing is measured. `--check` ends with 1
where the page says something else.
"""

import argparse
import contextlib
import json
import pathlib
import re
import statistics
import string
import sys
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pages

from craft_jax.runtime.files import write_atomic

_HERE = pathlib.Path(__file__).parent
RESULTS = _HERE / 'results'
_SAID = tomllib.loads((_HERE / 'sentences.toml').read_text('utf-8'))
_BARS = 'ratio at most'  # what a bar bounds, where a result does not say

Result = Mapping[str, Any]
Variants = dict[str, dict[str, Any]]


class _Figures(string.Formatter):
  """`str.format` in which a last letter of M and G divides by 1e6 and 1e9."""

  def format_field(self, value: Any, spec: str) -> str:
    scale = {'M': 1e-6, 'G': 1e-9}.get(spec[-1:])
    if scale is not None:
      value, spec = value * scale, spec[:-1]
    return str(super().format_field(value, spec))


# --- results that are not told variant by variant ----------------------------


def _losses(result: Result) -> Variants:
  """The mean loss at the end of the runs of each side, then the variants."""
  final = {
    f'loss_{name}': statistics.mean(run[-1]['val_loss'] for run in runs)
    for name, runs in result['evaluations'].items()
  }
  return {'final': final} | {
    name: row | {'sign': '' if row['torch_reached'] else 'more than '}
    for name, row in result['variants'].items()
  }


def _recipe(result: Result) -> Variants:
  """The whole recipe, and the loss without any part of it."""
  rows = result['variants']
  return {'recipe': rows['recipe'] | {'plain': rows['baseline']['val_loss']}}


def _slowest(result: Result) -> Variants:
  """The slowest constraint that is compiled, and the slowest refused."""
  rows, found = result['variants'].items(), {}
  for word in ('compiled', 'refused'):
    group = [kv for kv in rows if ('refused' in kv[1]) == (word == 'refused')]
    name, row = max(group, key=lambda kv: kv[1]['milliseconds'])
    found[f'the slowest of {len(group)} that are {word}, `{name}`'] = row
  return found


_CHOSEN = {'time_to_loss': _losses, 'ablate': _recipe, 'constraints': _slowest}


# --- sentences ---------------------------------------------------------------


def _bars(result: Result, row: Mapping[str, Any]) -> str:
  """The bounds of a variant, and whether it misses them; '' without any.

  `bar` bounds the figure that the result names; `least_X` and `most_X` of a
  variant bound its figure X.
  """
  key, _, side = result.get('bars', _BARS).partition(' ')
  bounds = [(key, side, row.get('bar'))]
  for name, bound in row.items():
    if found := re.fullmatch('(least|most)_(.+)', name):
      bounds.append((found[2], f'at {found[1]}', bound))
  told = []
  for key, side, bound in bounds:
    value = row.get(key)
    if bound is not None and value is not None:
      missed = value > bound if side == 'at most' else value < bound
      told.append(
        f'{key.replace("_", " ")} {side} {bound:,g}{", **missed**" * missed}'
      )
  return f' (bar: {"; ".join(told)})' if told else ''


def _sentences(script: str, result: Result) -> Iterator[str]:
  """A sentence for every variant that others are not compared with."""
  key = result.get('bars', _BARS).partition(' ')[0]
  sentences = _SAID['sentences'].get(script, [f'{{name}}: {key} {{{key}:.4g}}'])
  words = _SAID['words'].get(script, {})
  pattern = re.compile('|'.join(map(re.escape, words)) or '(?!)')
  base = ''
  for name, row in _CHOSEN.get(script, lambda r: r['variants'])(result).items():
    if row.get('ratio') == 1 and row['bar'] is None:
      base = name
      continue
    figures = {
      field: pattern.sub(lambda found: words[found[0]], value)
      if isinstance(value, str)
      else value
      for field, value in (result | row | {'name': name, 'base': base}).items()
    }
    for sentence in sentences:
      with contextlib.suppress(KeyError, TypeError):  # not its figures
        text = _Figures().vformat(sentence, (), figures)
        yield text.replace('|', '\\|') + _bars(result, row)
        break


def rows_of(path: pathlib.Path) -> list[tuple[str, str]]:
  """The cells of every row of a result.

  Raises:
    ValueError: the file is not as its script writes it.
  """
  script = path.stem.partition('-')[0]
  try:
    result = json.loads(path.read_text(encoding='utf-8'))
    rows = [(f'`{path.stem}`', text) for text in _sentences(script, result)]
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'{path} is no result of {script}: {e!r}') from e
  if not rows:
    raise ValueError(f'{path} is no result of {script}: it has no figures')
  return rows


# --- tables ------------------------------------------------------------------


def _order(path: pathlib.Path) -> tuple[str, int, str]:
  script, known = path.stem.partition('-')[0], list(_SAID['sentences'])
  place = known.index(script) if script in known else len(known)
  return path.parent.name, place, path.stem


def tables(results: pathlib.Path = RESULTS) -> str:
  """A table for every machine and version of JAX that has results."""
  found: dict[str, list[tuple[str, str]]] = {}
  for path in sorted(results.glob('*/*.json'), key=_order):
    rows = rows_of(path)
    on = json.loads(path.read_text(encoding='utf-8'))
    machine = f'{on["hardware"]}, jax {on["jax"]} (`{path.parent.name}`)'
    found.setdefault(machine, []).extend(rows)
  return (
    '\n\n'.join(
      f'### {machine}\n\n{pages.table(("benchmark", "result"), rows, left=2)}'
      for machine, rows in found.items()
    )
    or 'Nothing is kept yet.'
  )


def main() -> None:
  """Prints the tables, writes them into a page, or checks a page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--write', metavar='PAGE', help='refresh this page')
  parser.add_argument('--check', metavar='PAGE', help='is this page fresh?')
  args = parser.parse_args()
  if not args.write and not args.check:
    print(tables())
    return
  path = pathlib.Path(args.write or args.check)
  page = path.read_text(encoding='utf-8')
  fresh = pages.refreshed(page, {'results': tables()})
  if args.write:
    write_atomic(path, fresh)
  elif page != fresh:
    sys.exit(f'{path} is stale: python benchmarks/tables.py --write {path}')


if __name__ == '__main__':
  main()
