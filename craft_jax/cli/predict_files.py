"""Files of prompts and of completions: text, TSV, CSV and JSON Lines.

A file is read as records, each a mapping of fields; a file of text has one
field, its line. Line breaks of a text file are `\\n` or `\\r\\n`.
"""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from craft_jax.errors import UserError, one_line
from craft_jax.runtime import strict_json

FORMATS = ('txt', 'tsv', 'csv', 'jsonl')
_DELIMITER = {'tsv': '\t', 'csv': ','}
_BOM = b'\xef\xbb\xbf'


class Record(NamedTuple):
  """A record and where it begins.

  Attributes:
    place: file and line, for messages.
    fields: its values by name; strings, but for those of JSON.
  """

  place: str
  fields: dict[str, Any]


def format_of(path: str, given: str | None, usual: str) -> str:
  """The format of a file: the one given, else by its extension, else `usual`.

  Raises:
    UserError: a file has another extension, and no format was given.
  """
  if given:
    return given
  if path == '-':
    return usual
  extension = os.path.splitext(path)[1].removeprefix('.').lower()
  if extension in FORMATS:
    return extension
  raise UserError(
    f'{path} does not say what it is; name it .txt, .tsv, .csv or .jsonl, or '
    'give --format'
  )


def read(
  file: BinaryIO, name: str, form: str, text_field: str
) -> Iterator[Record]:
  """The records of a file, from its start.

  Args:
    file: an open file that can seek.
    name: of the file, for messages.
    form: one of `FORMATS`.
    text_field: name of the field of a text file.

  Raises:
    UserError: not UTF-8, a quote that is not closed, a row of another number
      of fields than the header, or not JSON; names file and line.
  """
  file.seek(0)
  lines = _lines(file, name)
  if form == 'txt':
    for number, line in enumerate(lines, 1):
      text = line.removesuffix('\n').removesuffix('\r')
      yield Record(f'{name}:{number}', {text_field: text})
  elif form == 'jsonl':
    for number, line in enumerate(lines, 1):
      if line.strip():
        yield Record(f'{name}:{number}', _object(f'{name}:{number}', line))
  else:
    yield from _rows(lines, name, _DELIMITER[form])


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
  for number, line in enumerate(file, 1):
    if number == 1:
      line = line.removeprefix(_BOM)
    try:
      yield line.decode('utf-8')
    except UnicodeDecodeError as e:
      raise UserError(
        f'{name}:{number}: byte {e.start + 1} of the line is not UTF-8; '
        'convert the file to UTF-8'
      ) from e


def _object(place: str, line: str) -> dict[str, Any]:
  try:
    found = strict_json.loads(line)
  except (ValueError, RecursionError) as e:
    raise UserError(f'{place}: not JSON: {one_line(e)}') from e
  if not isinstance(found, dict):
    raise UserError(f'{place}: must be an object like {{"prompt": "text"}}')
  return found


def _rows(lines: Iterator[str], name: str, delimiter: str) -> Iterator[Record]:
  """The rows of a file with a header; blank lines are passed over."""
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  columns: list[str] = []
  while True:
    place = f'{name}:{reader.line_num + 1}'
    try:
      row = next(reader, None)
    except csv.Error as e:
      said = one_line(e)
      if 'end of data' in said or 'field limit' in said:
        said = 'a quote is opened here and not closed'
      raise UserError(
        f'{place}: {said}; put fields with quotes in quotes and double theirs'
      ) from e
    if row is None:
      return
    if not row:
      continue
    if not columns:
      columns = _header(row, place)
    elif len(row) != len(columns):
      raise UserError(
        f'{place}: the row has {len(row)} field(s), the header {len(columns)}'
      )
    else:
      yield Record(place, dict(zip(columns, row, strict=True)))


def _header(row: list[str], place: str) -> list[str]:
  twice = next((name for name in row if row.count(name) > 1), None)
  if twice is not None:
    raise UserError(f'{place}: the header has the column {twice!r} twice')
  return row


# --- writing -----------------------------------------------------------------


class Layout(NamedTuple):
  """How completions are written.

  Attributes:
    form: one of `FORMATS`.
    columns: names of the columns of a table, those of the input first.
    field: the field of the completion.
  """

  form: str
  columns: Sequence[str]
  field: str

  @property
  def header(self) -> bytes:
    """What comes before the first row."""
    if self.form not in _DELIMITER:
      return b''
    return self._table_row(self.columns)

  def encode(self, fields: Mapping[str, Any]) -> bytes:
    """A row, with its line break."""
    if self.form == 'txt':
      return _to_bytes(one_line_text(fields[self.field]) + '\n')
    if self.form == 'jsonl':
      return _to_bytes(strict_json.dumps(fields, ensure_ascii=False) + '\n')
    return self._table_row([fields.get(name, '') for name in self.columns])

  def _table_row(self, values: Sequence[Any]) -> bytes:
    text = io.StringIO(newline='')
    # Of the characters of the line break each is a reason for quotes.
    csv.writer(
      text, delimiter=_DELIMITER[self.form], lineterminator='\r\n'
    ).writerow(
      [v if isinstance(v, str) else strict_json.dumps(v) for v in values]
    )
    return _to_bytes(text.getvalue().removesuffix('\r\n') + '\n')

  def decode(self, record: bytes) -> dict[str, Any]:
    """The fields of a row that `encode` has written.

    Raises:
      ValueError: it is no such row.
    """
    text = record.decode('utf-8', 'surrogateescape').removesuffix('\n')
    if self.form == 'txt':
      return {self.field: text}
    if self.form == 'jsonl':
      fields = strict_json.loads(text)
      if not isinstance(fields, dict):
        raise ValueError('no object')
      return fields
    try:
      (row,) = csv.reader(
        io.StringIO(text, newline=''),
        delimiter=_DELIMITER[self.form],
        strict=True,
      )
      return dict(zip(self.columns, row, strict=True))
    except csv.Error as e:
      raise ValueError(one_line(e)) from e

  def records(self, file: BinaryIO) -> Iterator[bytes]:
    """The rows of an output, the header included; the last may be cut."""
    file.seek(0)
    for line in file:
      # A line break within quotes belongs to the field.
      while self.form in _DELIMITER and line.count(b'"') % 2:
        more = file.readline()
        if not more:
          break
        line += more
      yield line


def is_whole(record: bytes, form: str) -> bool:
  """Whether a row of `Layout.records` was written to its end."""
  quoted = form in _DELIMITER and record.count(b'"') % 2
  return record.endswith(b'\n') and not quoted


def one_line_text(text: str) -> str:
  r"""A text as one line: its line breaks become `\n` and `\r`, spelt out."""
  return text.replace('\r', '\\r').replace('\n', '\\n')


def _to_bytes(text: str) -> bytes:
  from craft_jax.data.text.utf8 import to_bytes

  return to_bytes(text)
