"""Reads rows of pairs from TSV, CSV and JSON Lines.

A row that cannot be used is a `LeftOut` with its reason and place; what is
wrong with a file as a whole is a `UserError`.
"""

import csv
import functools
import io
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from craft_jax.errors import UserError

_MOST_NAMES = 12  # columns that an error lists


class Fields(NamedTuple):
  """Names of the fields of a pair; `group` is '' if there is none."""

  prompt: str
  completion: str
  group: str = ''

  @property
  def wanted(self) -> tuple[str, ...]:
    """The fields that every row needs."""
    return tuple(name for name in self if name)


class Row(NamedTuple):
  """A prompt with its completion, as text that UTF-8 can encode.

  Attributes:
    prompt: not empty.
    completion: not empty.
    group: value of the group field; '' if there is none.
    file: name of the file.
    line: number of the row's first line, from 1.
  """

  prompt: str
  completion: str
  group: str
  file: str
  line: int

  @property
  def place(self) -> str:
    """Where the row is, as `file:line`."""
    return f'{self.file}:{self.line}'


class LeftOut(NamedTuple):
  """A row that cannot be used.

  Attributes:
    reason: what is wrong with it, for a list after 'rows left out:'.
    place: `file:line`, or `file:first-last` if it takes several lines.
  """

  reason: str
  place: str


Found = Iterator[Row | LeftOut]


def is_readable(file: str) -> bool:
  """Whether the extension of a file is one of `EXTENSIONS`."""
  return pathlib.PurePath(file).suffix.lower() in EXTENSIONS


def rows_in(file: str, data: bytes, fields: Fields) -> Found:
  """Yields the rows of a file in order, those that cannot be used included.

  A byte order mark at the start is passed over, and lines may end in CR LF.
  Line breaks inside quoted fields are kept as they are.

  Args:
    file: name of the file, with one of `EXTENSIONS`.
    data: its bytes.
    fields: fields to read.

  Raises:
    UserError: a field is missing in the whole file, a quote never closes, or
      the file is no table or no JSON Lines.
  """
  data = data.removeprefix(b'\xef\xbb\xbf')
  return _READERS[pathlib.PurePath(file).suffix.lower()](file, data, fields)


def _row(file: str, line: int, values: Sequence[Any]) -> Row | LeftOut:
  """A row of a prompt, a completion and, if it has one, a group."""
  prompt, completion, *group = values
  if not prompt:
    return LeftOut('empty prompt', f'{file}:{line}')
  if not completion:
    return LeftOut('empty completion', f'{file}:{line}')
  text = ''.join(values)
  if not text.isascii():
    try:
      text.encode('utf-8')
    except UnicodeEncodeError:  # a lone surrogate: an invalid byte, or \ud800
      return LeftOut('not UTF-8', f'{file}:{line}')
  return Row(prompt, completion, group[0] if group else '', file, line)


# --- TSV and CSV -------------------------------------------------------------


def _delimited(delimiter: str, file: str, data: bytes, fields: Fields) -> Found:
  """Reads a table whose first line names its columns (RFC 4180)."""
  text = data.decode('utf-8', 'surrogateescape')
  # The limit is one of the process; the default of 128 KiB would end a quote
  # that never closes with an error that does not say so.
  csv.field_size_limit(max(csv.field_size_limit(), len(text)))
  lines = io.StringIO(text, newline='')  # keeps line breaks inside of quotes
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  header: list[str] = []
  columns: list[int] = []
  while True:
    line = reader.line_num + 1
    try:
      cells = next(reader)
    except StopIteration:
      break
    except csv.Error as e:
      if 'unexpected end of data' in str(e):
        raise UserError(
          f'{file}:{line}: a quote opens here and never closes; close it, or '
          'double the quotes of the text inside a quoted field'
        ) from None
      if not header:
        raise UserError(f'{file}:{line}: {e}; mend the names of columns') from e
      last = reader.line_num
      place = f'{file}:{line}' + (f'-{last}' if last > line else '')
      yield LeftOut('text after a closing quote', place)
      continue
    if not header:
      header, columns = cells, _columns(file, cells, fields)
    elif len(cells) == len(header):
      yield _row(file, line, [cells[column] for column in columns])
    elif cells:
      yield LeftOut('not as many fields as columns', f'{file}:{line}')
    else:
      yield LeftOut('empty line', f'{file}:{line}')
  if not header:
    raise UserError(f'{file} has no first line that names its columns; add one')


def _columns(file: str, header: Sequence[str], fields: Fields) -> list[int]:
  """The column of each wanted field."""
  for name in fields.wanted:
    if header.count(name) > 1:
      raise UserError(f'{file} has two columns {name!r}; rename one')
    if name not in header:
      raise _missing(file, 'column', name, header, fields)
  return [header.index(name) for name in fields.wanted]


def _missing(
  file: str, what: str, name: str, known: Sequence[str], fields: Fields
) -> UserError:
  """The error for a field that a file does not have."""
  listed = ', '.join(repr(k[:40]) for k in known[:_MOST_NAMES])
  more = ', ...' if len(known) > _MOST_NAMES else ''
  setting = Fields._fields[fields.index(name)]
  return UserError(
    f'{file} has no {what} {name!r}; it has {listed or "none"}{more}; set '
    f'--config.data.{setting}_field=NAME'
    + ('; the first line names the columns' if what == 'column' else '')
  )


# --- JSON Lines --------------------------------------------------------------


def _json_lines(file: str, data: bytes, fields: Fields) -> Found:
  """Reads a JSON object per line; numbers are groups too."""
  if data.lstrip()[:1] == b'[':
    raise UserError(
      f'{file} is one JSON array; write an object per line, as with '
      f"jq -c '.[]' {file}"
    )
  known: list[str] = []
  seen: set[str] = set()
  for number, line in enumerate(data.splitlines(), 1):
    if not line.strip():
      yield LeftOut('empty line', f'{file}:{number}')
      continue
    found = _object(line)
    if isinstance(found, str):
      yield LeftOut(found, f'{file}:{number}')
      continue
    known = known or list(found)
    seen.update(name for name in fields.wanted if name in found)
    yield _row_of(file, number, found, fields)
  for name in fields.wanted:
    if known and name not in seen:
      raise _missing(file, 'field', name, known, fields)


def _object(line: bytes) -> dict[str, Any] | str:
  """The object of a line, or why it has none."""
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError:
    return 'not UTF-8'
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):  # no JSON, or nested too deeply
    return 'not JSON'
  return found if isinstance(found, dict) else 'not a JSON object'


def _row_of(
  file: str, line: int, found: dict[str, Any], fields: Fields
) -> Row | LeftOut:
  """The row of an object."""
  values = []
  for name in fields.wanted:
    if name not in found:
      return LeftOut(f'no field {name!r}', f'{file}:{line}')
    value = found[name]
    if name == fields.group and isinstance(value, int):
      value = str(value)
    if not isinstance(value, str):
      return LeftOut(f'{name!r} is not a string', f'{file}:{line}')
    values.append(value)
  return _row(file, line, values)


_READERS: dict[str, Callable[[str, bytes, Fields], Found]] = {
  '.tsv': functools.partial(_delimited, '\t'),
  '.csv': functools.partial(_delimited, ','),
  '.jsonl': _json_lines,
  '.json': _json_lines,
}
EXTENSIONS = tuple(_READERS)
