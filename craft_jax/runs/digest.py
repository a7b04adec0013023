"""The few values of a run that a list shows, without reading every row."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from craft_jax.runs import tail
from craft_jax.runs.layout import METRICS

DIGEST = '.digest.json'
_FORMAT = 1
_EVALUATION, _TRAINED = b'"val_loss"', b'"loss"'


@dataclasses.dataclass
class Digest:
  """A summary of the rows of a run.

  Attributes:
    offset: bytes of `metrics.jsonl` that were read.
    tail: the bytes before that place, as text of one byte a character.
    step: of the last row that was read; 0 without one.
    last: the last row of training, or {}.
    best: the evaluation of least `val_loss`, or {}.
    final: the last evaluation, or {}.
    evaluations: how many there are.
  """

  offset: int = 0
  tail: str = ''
  step: int = 0
  last: dict[str, Any] = dataclasses.field(default_factory=dict)
  best: dict[str, Any] = dataclasses.field(default_factory=dict)
  final: dict[str, Any] = dataclasses.field(default_factory=dict)
  evaluations: int = 0


def read(folder: pathlib.Path) -> Digest:
  """The digest of a run directory; reads only what came since the last time.

  Kept in the directory where that can be written.
  """
  path = folder / METRICS
  if not path.exists():
    return Digest()
  found = _kept(folder / DIGEST)
  if not tail.goes_on(path, found.offset, found.tail.encode('latin-1')):
    found = Digest()
  before = found.offset
  for block, end in tail.whole_lines(path, found.offset):
    _add(found, block)
    kept = tail.tail_of(block, found.tail.encode('latin-1'))
    found.offset, found.tail = end, kept.decode('latin-1')
  if found.offset != before:
    text = json.dumps({'format': _FORMAT} | dataclasses.asdict(found))
    tail.keep(folder / DIGEST, text.encode())
  return found


def offset(folder: pathlib.Path) -> int:
  """Bytes of the rows that were read into what is kept."""
  return _kept(folder / DIGEST).offset


def _kept(path: pathlib.Path) -> Digest:
  try:
    fields = json.loads(path.read_bytes())
    if fields.pop('format') == _FORMAT:
      return Digest(**fields)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    pass  # none, or another version's
  return Digest()


def _add(found: Digest, block: bytes) -> None:
  """Adds whole lines: searches bytes, and parses only the rows that count."""
  at = block.find(_EVALUATION)
  while at >= 0:
    row, end = _row_at(block, at)
    if 'val_loss' in row:
      row = {k: v for k, v in row.items() if _is_plain(v)}
      found.evaluations += 1
      found.final = row
      loss, best = row['val_loss'], found.best.get('val_loss')
      if loss is not None and (best is None or loss < best):
        found.best = row
    at = block.find(_EVALUATION, end)
  at = block.rfind(_TRAINED)
  if at >= 0:
    row, _ = _row_at(block, at)
    found.last = {k: v for k, v in row.items() if _is_plain(v)} or found.last
  last, _ = _row_at(block, len(block) - 1)
  if isinstance(last.get('step'), int):
    found.step = max(found.step, last['step'])


def _row_at(block: bytes, at: int) -> tuple[dict[str, Any], int]:
  """The row around a place, {} if it is damaged; and where it ends."""
  start, end = block.rfind(b'\n', 0, at) + 1, block.find(b'\n', at)
  try:
    row = json.loads(block[start:end])
  except ValueError:
    return {}, end
  return (row if isinstance(row, dict) else {}), end


def _is_plain(value: Any) -> bool:
  return value is None or (
    isinstance(value, (int, float)) and math.isfinite(value)
  )
