"""The tables of README.md, from the results that are kept.

  python benchmarks/tables.py [--write README.md]

A table for every folder of benchmarks/results/, a row for every figure of its
files. Nothing is measured.
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pages

from craft_jax.runtime.files import write_atomic

RESULTS = pathlib.Path(__file__).parent / 'results'
_MARKER = 'results'
_BARS = 'ratio at most'  # what a bar bounds, where a result does not say
_RATES = {'data': 'symbols/s', 'scaling': 'steps/s'}
_NANOGPT = "nanoGPT's recipe in PyTorch"

Result = Mapping[str, Any]


class Row(NamedTuple):
  """A line of a table, but for what is measured with and on what.

  Attributes:
    what: the variant.
    figure: with its unit.
    ratio: to what it is compared with, by name.
    bar: what was wanted, and whether it was missed.
  """

  what: str
  figure: str
  ratio: str = ''
  bar: str = ''


def _bar(result: Result, row: Mapping[str, Any]) -> str:
  """What was wanted of a variant; '' if nothing was."""
  key, _, side = result.get('bars', _BARS).partition(' ')
  bar, value = row.get('bar'), row.get(key)
  if bar is None or value is None:
    return ''
  missed = value > bar if side == 'at most' else value < bar
  return f'{side} {bar:g}{", **missed**" if missed else ""}'


# --- a function per script ---------------------------------------------------


def _compared(result: Result) -> Iterator[Row]:
  """Variants beside the one before them that has a ratio of 1."""
  base = ''
  for name, row in result['variants'].items():
    if row['ratio'] == 1 and row['bar'] is None:
      base = name
      continue
    if 'milliseconds' in row:
      figure = f'{row["milliseconds"]:.1f} ms a step'
    else:
      unit = _RATES.get(result['script'], 'per second')
      figure = f'{row["rate"]:,.{0 if row["rate"] > 100 else 2}f} {unit}'
    yield Row(name, figure, f'{row["ratio"]:.4g} x {base}', _bar(result, row))


def _train_step(result: Result) -> Iterator[Row]:
  """Ours beside the fastest peer of any precision, and the one of the bar."""
  if all('ratio' in row for row in result['variants'].values()):
    yield from _compared(result)  # a sweep
    return
  kind = result['bars'].partition(' ')[0].removeprefix('speedup_')
  for name, row in result['variants'].items():
    if 'bar' not in row:
      continue  # a peer
    fastest, other = row.get('fastest_any', ''), row.get(f'fastest_{kind}', '')
    ratio = f'{row["speedup_any"]:.4g} x {fastest}' if fastest else ''
    bar = _bar(result, row)
    if bar and other != fastest:
      bar = f'{row[f"speedup_{kind}"]:.4g} x {other}: {bar}'
    least = row.get('least_of_products')
    if least is not None:
      missed = ', **missed**' if row['of_products'] < least else ''
      share = f'{row["of_products"]:.1%} of large products'
      bar = '; '.join(
        filter(None, [bar, f'{share}: at least {least:.0%}{missed}'])
      )
    yield Row(name, f'{row["chars_per_second"]:,.0f} characters/s', ratio, bar)


def _decode(result: Result) -> Iterator[Row]:
  """Ours of each batch beside the fastest peer, and the bars of all peers."""
  batches: dict[str, dict[str, Mapping[str, Any]]] = {}
  for name, row in result['variants'].items():
    variant, _, batch = name.rpartition(', batch ')
    batches.setdefault(batch, {})[variant] = row
  for batch, rows in batches.items():
    ours = rows.pop('craft')
    ratio = ''
    if rows:
      fastest = min(rows, key=lambda name: rows[name]['speedup'])
      ratio = f'{rows[fastest]["speedup"]:.4g} x {fastest}'
    bars = [
      f'{row["speedup"]:.4g} x {name}: {bar}'
      for name, row in rows.items()
      if (bar := _bar(result, row))
    ]
    rate, least = ours['chars_per_second'], ours.get('least_chars_per_second')
    if least is not None:
      missed = ', **missed**' if rate < least else ''
      bars.append(f'at least {least:,} characters/s{missed}')
    figure = f'{rate:,.0f} characters/s'
    yield Row(f'craft, batch {batch}', figure, ratio, '; '.join(bars))


def _time_to_loss(result: Result) -> Iterator[Row]:
  """The loss at the end, and the seconds until two losses."""
  means = {
    name: statistics.mean(run[-1]['val_loss'] for run in runs)
    for name, runs in result['evaluations'].items()
  }
  yield Row(
    'validation loss of tinyshakespeare after 2,000 steps',
    f'{means["craft"]:.4f} nats',
    f'{means["torch"]:.4f} {_NANOGPT}',
  )
  for name, row in result['variants'].items():
    if row['craft'] is None:
      yield Row(f'time to {name}', 'not reached', '', _bar(result, row))
      continue
    sign = '' if row['torch_reached'] else 'more than '
    yield Row(
      f'time to {name}',
      f'{row["craft"]:.1f} s',
      f'{sign}{row["speedup"]:.4g} x {_NANOGPT}',
      _bar(result, row),
    )


def _startup(result: Result) -> Iterator[Row]:
  if result.get('case') == 'commands':
    for name, row in result['variants'].items():
      cold = name.replace('warm', 'cold')
      if name != cold:
        figure = f'{row["milliseconds"] / 1e3:.1f} s of processor time'
        ratio = f'{row["ratio"]:.2f} x {cold}'
        yield Row(name, figure, ratio, _bar(result, row))
    return
  for name, row in result['variants'].items():
    bar = _bar(result, row)
    yield Row(f'{name}, to the first step', f'{row["seconds"]:.1f} s', '', bar)


def _ablate(result: Result) -> Iterator[Row]:
  """The whole recipe beside the baseline; the rest is in docs/recipe.md."""
  rows = result['variants']
  if 'recipe' in rows and 'baseline' in rows:
    yield Row(
      f'validation loss of tinyshakespeare, {rows["recipe"]["seeds"]} seeds',
      f'{rows["recipe"]["val_loss"]:.4f} nats',
      f'{rows["baseline"]["val_loss"]:.4f} the [baseline](docs/recipe.md)',
    )


def _compressors(result: Result) -> Iterator[Row]:
  for name, row in result['variants'].items():
    after, alone = row['after_training'], row['alone']
    figure = f'{after:.4f} bits per byte after training, {alone:.4f} alone'
    yield Row(f'{name}, {result["split"]} split', figure)


def _constraints(result: Result) -> Iterator[Row]:
  """The slowest of those that are compiled, and of those that are refused."""
  rows = result['variants']
  for what, is_refused in (('compiled', False), ('refused', True)):
    names = [name for name in rows if ('refused' in rows[name]) is is_refused]
    slowest = max(names, key=lambda name: rows[name]['milliseconds'])
    figure = f'{rows[slowest]["milliseconds"]:.0f} ms'
    cell = slowest.replace('|', '\\|')
    yield Row(
      f'slowest of {len(names)} {what}, {cell}',
      figure,
      bar=_bar(result, rows[slowest]),
    )


def _quantized(result: Result) -> Iterator[Row]:
  """Bytes and bits of each variant, and its speed beside the first."""
  first = next(iter(result['variants']))
  for name, row in result['variants'].items():
    weights, cache = row['weight_bytes'] / 1e6, row['cache_bytes'] / 1e6
    figure = f'{weights:.2f} MB, and {cache:.2f} MB a text'
    if 'bits_per_byte' in row:
      figure += f'; {row["bits_per_byte"]:.4f} bits per byte'
    ratio = ''
    if name != first:
      ratio = (
        f'{row["speedup_1"]:.3g} x {first}, {row["speedup_16"]:.3g} x with '
        'sixteen texts'
      )
    yield Row(name, figure, ratio)


def _memory(result: Result) -> Iterator[Row]:
  """Measured bytes over those that were told before the run."""
  for name, row in result['variants'].items():
    yield Row(
      name,
      f'{row["measured"] / 1e9:.2f} GB',
      f'{row["ratio"]:.3f} x its program, {row["planned_ratio"]:.2f} x the '
      'arithmetic plan',
      f'{row["error"]:.1%} off: {_bar(result, row)}',
    )


def _served(result: Result) -> Iterator[Row]:
  """What clients were given, beside what else could have written it."""
  for name, row in result['variants'].items():
    if row['of'] == name and row['ratio'] == 1:
      continue  # what the others are compared with
    figure = f'{row["rate"]:,.0f} characters/s'
    if 'first_p99' in row:
      missed = (
        ', **missed**' if row['first_p99'] > row['most_first_p99'] else ''
      )
      figure += (
        f', the first after {row["first_p50"]:.2f} s (p99 '
        f'{row["first_p99"]:.2f} s, at most {row["most_first_p99"]:g}{missed})'
      )
    ratio = f'{row["ratio"]:.2f} x {row["of"]}'
    if row['of'] == name:
      ratio = f'the server is {row["ratio"]:.1f} x as fast'
    yield Row(name, figure, ratio, _bar(result, row))


def _waits(result: Result) -> Iterator[Row]:
  """The longest waits of two clients while others send something."""
  for name, row in result['variants'].items():
    stream, health = 1e3 * row['stream'], 1e3 * row['health']
    figure = f'a stream {stream:.0f} ms, /health {health:.0f} ms at most'
    bar = _bar({'bars': 'seconds at most'}, row)
    yield Row(f'beside {name}', figure, '', bar and f'{bar} (seconds)')


def _other(result: Result) -> Iterator[Row]:
  """Of a script that has no function here: what its bars are about."""
  key = result.get('bars', _BARS).partition(' ')[0]
  for name, row in result['variants'].items():
    if row.get(key) is not None:
      yield Row(name, f'{key} {row[key]:.4g}', '', _bar(result, row))


# In the order of the rows: quality first.
_SCRIPTS: dict[str, Callable[[Result], Iterator[Row]]] = {
  'time_to_loss': _time_to_loss,
  'ablate': _ablate,
  'compressors': _compressors,
  'train_step': _train_step,
  'decode': _decode,
  'constrained': _compared,
  'engine': _compared,
  'serve_load': _served,
  'serve_waits': _waits,
  'guesses': _compared,
  'constraints': _constraints,
  'quantized': _quantized,
  'startup': _startup,
  'data': _compared,
  'scaling': _compared,
  'guards': _compared,
  'checkpoint': _compared,
  'meshes': _compared,
  'memory': _memory,
}
_HEAD = ('what', 'figure', 'beside', 'bar', 'hardware')


# --- tables ------------------------------------------------------------------


def rows_of(path: pathlib.Path) -> list[tuple[str, ...]]:
  """The cells of every row of a result.

  Raises:
    ValueError: the file is not as its script writes it.
  """
  script = path.stem.partition('-')[0]
  try:
    result = json.loads(path.read_text(encoding='utf-8')) | {'script': script}
    hardware = f'{result["hardware"]}, jax {result["jax"]}'
    rows = list(_SCRIPTS.get(script, _other)(result))
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f'{path} is no result of {script}: {e!r}') from e
  return [(f'`{path.stem}`: {row.what}', *row[1:], hardware) for row in rows]


def _order(path: pathlib.Path) -> tuple[int, str]:
  script = path.stem.partition('-')[0]
  known = list(_SCRIPTS)
  return known.index(script) if script in known else len(known), path.stem


def tables(results: pathlib.Path = RESULTS) -> str:
  """A table per device that has results, under the device's name."""
  parts = []
  for folder in sorted(path for path in results.glob('*') if path.is_dir()):
    rows = [
      row
      for path in sorted(folder.glob('*.json'), key=_order)
      for row in rows_of(path)
    ]
    if rows:
      table = pages.table(_HEAD, rows, left=len(_HEAD))
      parts.append(f'### {folder.name}\n\n{table}')
  return '\n\n'.join(parts) or 'Nothing is kept yet.'


def refreshed(page: str, results: pathlib.Path = RESULTS) -> str:
  """The page with the tables between their markers.

  Raises:
    ValueError: it has no place for them, or a result cannot be read.
  """
  return pages.refreshed(page, {_MARKER: tables(results)})


def main() -> None:
  """Prints or writes the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--write', metavar='PAGE', help='refresh this page')
  args = parser.parse_args()
  if args.write:
    page = pathlib.Path(args.write)
    write_atomic(page, refreshed(page.read_text(encoding='utf-8')))
  print(tables())


if __name__ == '__main__':
  main()
