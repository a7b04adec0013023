"""The rows of a run as columns, cached in a file beside `metrics.jsonl`.

The cache is a line of JSON that says where each column is, then float64 of the
machine's byte order; a column is mapped, so that only what is looked at is
read. pyarrow parses the rows where it is installed (the extra `runs`); else the
standard library does, several times slower. New rows are added to the cache.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from craft_jax.runs import tail
from craft_jax.runs.layout import METRICS

COLUMNS = '.columns'
TRAIN, EVAL = 'train', 'eval'
_FORMAT = 1
_LEFT_OUT = frozenset({'batch'})
# A row is of the table whose key it has.
_TABLES = {TRAIN: 'learning_rate', EVAL: 'val_count'}
Table = dict[str, np.ndarray]


def read(folder: pathlib.Path, table: str, names: Iterable[str]) -> Table:
  """Columns of float64 by name, each as long as `step`; NaN where missing.

  Not to be written to.

  Args:
    folder: the run directory.
    table: `TRAIN` (rows of steps) or `EVAL` (rows of evaluations).
    names: of columns; one that no row has is left out.
  """
  found = _fresh(folder)[table]
  return {name: found[name] for name in ('step', *names) if name in found}


def offset(folder: pathlib.Path) -> int:
  """Bytes of the rows that are kept as columns, as far as its head tells."""
  try:
    with open(folder / COLUMNS, 'rb') as file:
      return int(json.loads(file.readline(1 << 20))['offset'])
  except (OSError, ValueError, KeyError, TypeError):
    return 0


def _fresh(folder: pathlib.Path) -> dict[str, Table]:
  """All tables: from the cache if it is valid, else parsed and cached."""
  path = folder / METRICS
  if not path.exists():
    return {table: {'step': np.zeros(0)} for table in _TABLES}
  try:
    head, tables = _kept(folder / COLUMNS)
    offset, before = head['offset'], head['tail'].encode('latin-1')
    if tail.goes_on(path, offset, before):
      if offset == path.stat().st_size:
        return tables
      return _grown(folder, tables, offset, before)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    pass  # none, damaged, or another version's
  return _grown(folder, {}, 0, b'')


def _grown(
  folder: pathlib.Path, kept: Mapping[str, Table], offset: int, before: bytes
) -> dict[str, Table]:
  """The kept tables and the rows after `offset`; they are kept."""
  parts = {table: [kept[table]] if kept else [] for table in _TABLES}
  for block, end in tail.whole_lines(folder / METRICS, offset):
    for table, rows in _parsed(block).items():
      parts[table].append(rows)
    offset, before = end, tail.tail_of(block, before)
  tables = {table: _joined(rows) for table, rows in parts.items()}
  where, columns = {}, []
  for table, names in tables.items():
    where[table] = {'rows': len(names['step']), 'columns': list(names)}
    columns += list(names.values())
  head = {'format': _FORMAT, 'offset': offset, 'tail': before.decode('latin-1')}
  line = json.dumps(head | {'tables': where}).encode()
  line += b' ' * (-(len(line) + 1) % 64) + b'\n'  # columns begin aligned
  tail.keep(folder / COLUMNS, b''.join([line, *(c.tobytes() for c in columns)]))
  return tables


def _kept(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Table]]:
  """The head of what is kept, and the tables, mapped."""
  with open(path, 'rb') as file:
    line = file.readline(1 << 20)
  head = json.loads(line)
  counts = [t['rows'] * len(t['columns']) for t in head['tables'].values()]
  if head['format'] != _FORMAT or set(head['tables']) != set(_TABLES):
    raise ValueError('another version')
  if path.stat().st_size != len(line) + 8 * sum(counts):
    raise ValueError('cut short')
  if not sum(counts):  # nothing cannot be mapped
    flat: np.ndarray = np.zeros(0)
  else:
    flat = np.memmap(path, np.float64, 'r', len(line), (sum(counts),))
  tables: dict[str, Table] = {}
  at = 0
  for table, facts in head['tables'].items():
    tables[table] = {}
    for name in facts['columns']:
      tables[table][name] = flat[at : at + facts['rows']]
      at += facts['rows']
  return head, tables


def _joined(parts: list[Table]) -> Table:
  names = {name: None for part in parts for name in part} | {'step': None}

  def column(name: str, part: Table) -> np.ndarray:
    missing = np.full(len(part.get('step', ())), np.nan)
    return part.get(name, missing)

  return {
    name: np.concatenate([np.zeros(0), *(column(name, p) for p in parts)])
    for name in names
  }


def _parsed(block: bytes) -> dict[str, Table]:
  """The tables of whole lines of JSON."""
  try:
    import pyarrow
  except ImportError:
    return _parsed_slowly(block)
  try:
    return _parsed_by_arrow(block)
  except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
    # A half character in a sample, a damaged line, a number where was a text.
    return _parsed_slowly(block)


def _parsed_by_arrow(block: bytes) -> dict[str, Table]:
  import pyarrow
  import pyarrow.compute
  import pyarrow.json

  options = pyarrow.json.ReadOptions(block_size=4 << 20)
  rows = pyarrow.json.read_json(pyarrow.BufferReader(block), options)
  found: dict[str, Table] = {}
  for table, key in _TABLES.items():
    if key not in rows.column_names:
      found[table] = {}
      continue
    mine = rows.filter(pyarrow.compute.is_valid(rows[key]))
    columns = {
      name: mine[name].cast(pyarrow.float64()).to_numpy()
      for name in mine.column_names
      if name not in _LEFT_OUT and _is_number(mine.schema.field(name).type)
    }
    # What no row of this table has belongs to the other one.
    found[table] = {
      name: column
      for name, column in columns.items()
      if mine[name].null_count < len(mine)
    }
  return found


def _is_number(kind: Any) -> bool:
  import pyarrow

  return pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)


def _parsed_slowly(block: bytes) -> dict[str, Table]:
  lists: dict[str, list[dict[str, Any]]] = {table: [] for table in _TABLES}
  for line in block.splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    for table, key in _TABLES.items():
      if isinstance(row, dict) and row.get(key) is not None:
        lists[table].append(row)
  return {table: _as_columns(rows) for table, rows in lists.items()}


def _as_columns(rows: list[dict[str, Any]]) -> Table:
  names = {
    name: None
    for row in rows
    for name, value in row.items()
    if type(value) in (int, float) and name not in _LEFT_OUT
  }
  return {
    name: np.array([_number(row.get(name)) for row in rows], np.float64)
    for name in names
  }


def _number(value: Any) -> float:
  return value if type(value) in (int, float) else np.nan
