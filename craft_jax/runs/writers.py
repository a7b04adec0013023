"""Where metrics go: a protocol, and the JSON Lines writer every run has."""

import contextlib
import errno
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from craft_jax.errors import UserError
from craft_jax.runs.layout import METRICS, SUMMARY
from craft_jax.runtime import files, strict_json

_REMOTE_SECONDS = 30.0


class Writer(Protocol):
  """Receives what a run measures. Steps never go backwards."""

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records numbers of one step."""

  def text(self, step: int, text: str) -> None:
    """Records text of one step, such as a sample."""

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Records the metrics of the whole run and closes."""

  def close(self) -> None:
    """Closes, where the run ends without a summary. Repeatable."""


def to_json(value: Any) -> Any:
  """`value` as JSON can hold it; a float that is not finite becomes None.

  Takes what JSON takes and NumPy or JAX arrays and scalars.

  Raises:
    TypeError: anything else.
  """
  if isinstance(value, Mapping):
    return {str(k): to_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(v) for v in value]
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if hasattr(value, '__array__'):
    array = np.asarray(value)
    # bfloat16 and its kin are no NumPy kinds; float32 holds them exactly.
    wide = array.astype(np.float32) if array.dtype.kind == 'V' else array
    return to_json(wide.tolist())
  raise TypeError(f'{type(value).__name__} does not go into JSON')


class SilentWriter:
  """Writes nothing: for all but one process of a run."""

  last_seconds = 0.0
  count = cut = 0

  def _nothing(self, *args: Any) -> None:
    pass

  log = text = finish = mend = flush = close = _nothing

  def has(self, step: int, key: str) -> bool:
    """True: there is nothing left to write."""
    del step, key
    return True


class JsonlWriter:
  """`metrics.jsonl`: one JSON object per row, each with its `step`.

  A row is on its way to disk when `log` returns, so that a killed run loses
  none. Rows that a full disk does not take are kept and written with a later
  one. An object store cannot append; there the file is replaced whole, every
  30 seconds, before every save and at the end.

  Attributes:
    last_seconds: `seconds` of the last row that was kept, or 0.
    count: rows so far, those kept of earlier starts included.
    cut: whole lines of earlier starts that are no rows.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    step: int = 0,
    warn: Callable[[str], None] = lambda text: None,
    others: Sequence[Writer] = (),
  ):
    """Opens the file to continue after `step`.

    Rows past `step` belong to work that is done again, and a row cut short
    by a kill is half a row: both are dropped. Step 0 starts afresh.

    Args:
      workdir: the run directory.
      step: where the run stands.
      warn: told once when rows cannot be written for a while.
      others: get the same; they must neither raise nor wait.

    Raises:
      UserError: the file cannot be written.
    """
    self._path = epath.Path(workdir) / METRICS
    self._summary = epath.Path(workdir) / SUMMARY
    self._remote = files.is_remote(self._path)
    self._warn, self._warned = warn, False
    self._others = others
    kept = self._kept_rows(step)
    self.count = len(kept)
    self._seen = {(row['step'], key) for row, _ in kept for key in row}
    self.last_seconds = max(
      (float(row.get('seconds') or 0) for row, _ in kept), default=0.0
    )
    # All rows of a remote file, else those that are not written yet.
    self._rows = [line for _, line in kept]
    self._size = sum(map(len, self._rows))
    self._written = time.monotonic()
    try:
      files.write_atomic(self._path, b''.join(self._rows))
      if not self._remote:
        self._rows = []
        # Unbuffered: a row is written, or not, when this is known to be so.
        self._file = self._opened()
    except OSError as e:
      raise UserError(
        f'cannot write {self._path} ({e.strerror or e}); mend the folder'
      ) from e

  def _opened(self) -> io.FileIO:
    return open(self._path, 'a+b', buffering=0)

  def mend(self) -> None:
    """Writes the file anew where it was removed, or is a shorter copy.

    The rows are still in the file that this process holds open. A file that
    was put in its place is appended to.
    """
    if self._remote or self._file.closed:
      return
    try:
      if self._path.exists():
        there = os.stat(self._path)
        if os.path.samestat(there, os.fstat(self._file.fileno())):
          return
      self._file.seek(0)
      rows = self._file.read()
      found = self._path.read_bytes() if self._path.exists() else b''
      if rows.startswith(found):
        found = rows
        files.write_atomic(self._path, rows)
      self._file.close()
      self._file, self._size = self._opened(), len(found)
    except OSError as e:
      self._warn(f'cannot write {self._path} anew ({e.strerror or e})')
      return
    self._warn(
      f'{self._path} was removed or replaced; {len(found)} bytes of '
      'rows are in it now'
    )

  def _kept_rows(self, step: int) -> list[tuple[dict[str, Any], bytes]]:
    """The whole rows up to `step`: parsed, and as they stand in the file."""
    self.cut = 0
    if step <= 0:
      return []
    try:
      # Not after `exists`, which takes a store that fails for one without it.
      lines = self._path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
      return []
    kept = []
    for line in lines:
      try:
        row = json.loads(line)
      except ValueError:
        self.cut += line.endswith(b'\n')  # one without is what a kill leaves
        continue
      # A whole row ends in a newline; `{"step": 1` + `0}` must not be one.
      whole = line.endswith(b'\n') and isinstance(row, dict)
      if whole and isinstance(row.get('step'), int) and row['step'] <= step:
        kept.append((row, line))
    return kept

  def has(self, step: int, key: str) -> bool:
    """Whether a row of that step has the key, such as `val_loss`."""
    return (step, key) in self._seen

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends `{"step": step, **metrics}`; NaN and infinity become null."""
    self._append({'step': int(step)} | to_json(metrics))
    for writer in self._others:
      writer.log(step, metrics)

  def text(self, step: int, text: str) -> None:
    """Appends `{"step": step, "text": text}`."""
    self._append({'step': int(step), 'text': text})
    for writer in self._others:
      writer.text(step, text)

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json` and closes the file."""
    self._close_rows()
    text = strict_json.dumps(to_json(summary), indent=2)
    try:
      files.write_atomic(self._summary, text + '\n')
    except OSError as e:
      raise UserError(
        f'cannot write {self._summary} ({e.strerror or e}); mend the folder, '
        'then run the same command'
      ) from e
    for writer in self._others:
      writer.finish(summary)

  def close(self) -> None:
    """Flushes; for a run that ends without a summary. Repeatable."""
    self._close_rows()
    for writer in self._others:
      writer.close()

  def _close_rows(self) -> None:
    if self._remote:
      self.flush()
    elif not self._file.closed:
      if self._rows:
        self._write_rows()
      if self._rows:
        self._warn(f'{len(self._rows)} rows of {self._path} are lost')
      self._file.close()

  def _append(self, row: Mapping[str, Any]) -> None:
    self._seen |= {(row['step'], key) for key in row}
    self.count += 1
    # ASCII only: splitlines above must never meet U+2028 inside a row.
    self._rows.append(strict_json.dumps(row).encode() + b'\n')
    if not self._remote:
      self._write_rows()
    elif time.monotonic() - self._written > _REMOTE_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Sees that an object store has every row; elsewhere they are there.

    Rows that the store does not take now are kept for the next time.
    """
    if not self._remote:
      return
    self._written = time.monotonic()
    try:
      files.write_atomic(self._path, b''.join(self._rows))
      self._warned = False
    except OSError as e:
      if not self._warned:
        self._warned = True
        self._warn(f'{self._path} takes no rows now ({e}); they are kept')

  def _write_rows(self) -> None:
    """Appends what is not written yet, all of it or nothing."""
    data = b''.join(self._rows)
    try:
      if self._file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as e:
      if not self._warned:
        self._warned = True
        self._warn(
          f'{self._path} takes no rows now ({e.strerror}); they are kept'
        )
      with contextlib.suppress(OSError):
        self._file.truncate(self._size)
      return
    self._size += len(data)
    self._rows, self._warned = [], False
