"""The rows of a run as columns, kept beside them in NumPy's own format.

pyarrow parses them where it is installed (the extra `runs`); else the standard
library does, several times slower. Rows that came since are added.
"""

import io
import json
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from craft_jax.track import tail
from craft_jax.track.layout import METRICS

COLUMNS = '.columns.npz'
TRAIN, EVAL = 'train', 'eval'
_FORMAT = 1
_LEFT_OUT = frozenset({'batch'})
# A row is of the table whose key it has.
_TABLES = {TRAIN: 'learning_rate', EVAL: 'val_count'}
_UNREADABLE = (
  OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile,
)  # fmt: skip
Table = dict[str, np.ndarray]


def read(folder: pathlib.Path, table: str, names: Iterable[str]) -> Table:
  """Columns of float64 by name, each as long as `step`; NaN where missing.

  Args:
    folder: the run directory.
    table: `TRAIN` (rows of steps) or `EVAL` (rows of evaluations).
    names: of columns; one that no row has is left out.
  """
  wanted = ['step', *(name for name in names if name != 'step')]
  tables = _fresh(folder)
  if tables is not None:
    found = tables[table]
    return {name: found[name] for name in wanted if name in found}
  with open(folder / COLUMNS, 'rb') as file, np.load(file) as kept:
    return {
      name: kept[f'{table}/{name}']
      for name in wanted
      if f'{table}/{name}' in kept
    }


def _fresh(folder: pathlib.Path) -> dict[str, Table] | None:
  """All tables, read and kept anew; None if those that are kept are whole."""
  path = folder / METRICS
  if not path.exists():
    return {table: {'step': np.zeros(0)} for table in _TABLES}
  size = path.stat().st_size
  try:
    with open(folder / COLUMNS, 'rb') as file, np.load(file) as kept:
      meta = json.loads(bytes(kept['meta']))
      before = bytes(kept['tail'])
      valid = meta['format'] == _FORMAT and meta['offset'] <= size
      if valid and tail.goes_on(path, meta['offset'], before):
        if meta['offset'] == size:
          return None
        return _grown(folder, kept, meta['offset'], before)
  except _UNREADABLE:
    pass  # none, damaged, or another version's
  return _grown(folder, {}, 0, b'')


def _grown(
  folder: pathlib.Path, kept: Mapping[str, Any], offset: int, before: bytes
) -> dict[str, Table]:
  """The kept tables and the rows after `offset`; they are kept."""
  parts: dict[str, list[Table]] = {table: [] for table in _TABLES}
  for name in kept:
    table, _, column = name.partition('/')
    if column:
      parts[table] = parts[table] or [{}]
      parts[table][0][column] = kept[name]
  for block, end in tail.whole_lines(folder / METRICS, offset):
    for table, rows in _parsed(block).items():
      parts[table].append(rows)
    offset, before = end, tail.tail_of(block, before)
  tables = {table: _joined(rows) for table, rows in parts.items()}
  arrays = {
    f'{table}/{name}': column
    for table, columns in tables.items()
    for name, column in columns.items()
  }
  meta = json.dumps({'format': _FORMAT, 'offset': offset}).encode()
  buffer = io.BytesIO()
  np.savez(
    buffer,
    allow_pickle=False,
    meta=np.frombuffer(meta, np.uint8),
    tail=np.frombuffer(before, np.uint8),
    **arrays,
  )
  tail.keep(folder / COLUMNS, buffer.getvalue())
  return tables


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
