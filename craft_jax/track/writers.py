"""Where figures go: a protocol, and the JSON Lines writer every run has."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from etils import epath

from craft_jax import files
from craft_jax.errors import UserError
from craft_jax.track.rundir import METRICS, SUMMARY

_REMOTE_SECONDS = 30.0


class Writer(Protocol):
  """Receives what a run measures. Steps never go backwards."""

  def log(self, step: int, figures: Mapping[str, Any]) -> None:
    """Records numbers of one step."""

  def text(self, step: int, text: str) -> None:
    """Records text of one step, such as a sample."""

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Records the figures of the whole run and closes."""


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


class JsonlWriter:
  """`metrics.jsonl`: one JSON object per row, each with its `step`.

  A row is on its way to disk when `log` returns, so that a killed run loses
  none. An object store cannot append; there the file is replaced whole, at
  most every 30 seconds and at the end.
  """

  def __init__(self, workdir: epath.PathLike, step: int = 0):
    """Opens the file to continue after `step`.

    Rows past `step` belong to work that is done again, and a row cut short
    by a kill is half a row: both are dropped. Step 0 starts afresh.

    Raises:
      UserError: the file cannot be written.
    """
    self._path = epath.Path(workdir) / METRICS
    self._summary = epath.Path(workdir) / SUMMARY
    self._remote = files.is_remote(self._path)
    self._rows = self._kept_rows(step)
    self._written = time.monotonic()
    try:
      files.write_atomic(self._path, ''.join(self._rows))
      if not self._remote:
        self._rows = []
        self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115
    except OSError as e:
      raise UserError(
        f'cannot write {self._path} ({e.strerror or e}); mend the folder'
      ) from e

  def _kept_rows(self, step: int) -> list[str]:
    if step <= 0 or not self._path.exists():
      return []
    kept = []
    text = self._path.read_bytes().decode('utf-8', 'replace')
    for line in text.splitlines(keepends=True):
      try:
        row = json.loads(line)
      except ValueError:
        continue
      # A whole row ends in a newline; `{"step": 1` + `0}` must not be one.
      whole = line.endswith('\n') and isinstance(row, dict)
      if whole and isinstance(row.get('step'), int) and row['step'] <= step:
        kept.append(line)
    return kept

  def log(self, step: int, figures: Mapping[str, Any]) -> None:
    """Appends `{"step": step, **figures}`; NaN and infinity become null."""
    self._append({'step': int(step)} | to_json(figures))

  def text(self, step: int, text: str) -> None:
    """Appends `{"step": step, "text": text}`."""
    self._append({'step': int(step), 'text': text})

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json` and closes the file."""
    self.close()
    text = json.dumps(to_json(summary), indent=2, allow_nan=False)
    files.write_atomic(self._summary, text + '\n')

  def close(self) -> None:
    """Flushes; for a run that ends without a summary. Repeatable."""
    if self._remote:
      files.write_atomic(self._path, ''.join(self._rows))
    else:
      self._file.close()

  def _append(self, row: Mapping[str, Any]) -> None:
    # ASCII only: splitlines above must never meet U+2028 inside a row.
    line = json.dumps(row, allow_nan=False) + '\n'
    if not self._remote:
      self._file.write(line)
      self._file.flush()
      return
    self._rows.append(line)
    if time.monotonic() - self._written > _REMOTE_SECONDS:
      files.write_atomic(self._path, ''.join(self._rows))
      self._written = time.monotonic()
