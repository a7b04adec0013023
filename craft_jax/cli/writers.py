"""Writers of samples as text or JSON, to standard output or a file."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from craft_jax.runtime import files, strict_json, terminal


class _Sink(Protocol):
  """A destination of text.

  Attributes:
    whole: whether it accepts finished samples only.
  """

  whole: bool

  def write(self, text: str) -> None: ...

  def flush(self) -> None: ...


class Stdout:
  """Standard output, streamed."""

  whole = False

  def write(self, text: str) -> None:
    """Writes UTF-8 whatever the encoding of the terminal.

    Invalid bytes are written unchanged to a pipe, and escaped on a terminal.
    """
    from craft_jax.data.text.utf8 import to_bytes

    sys.stdout.flush()
    if sys.stdout.isatty():
      text = terminal.visible(text)
    sys.stdout.buffer.write(to_bytes(text))

  def flush(self) -> None:
    """Flushes standard output."""
    sys.stdout.flush()


class File:
  """A file that is written atomically when it is closed."""

  whole = True

  def __init__(self, path: str, *inputs: str):
    """Checks that the file can be written.

    Args:
      path: the file.
      inputs: input files, which must not be overwritten.

    Raises:
      UserError: the file cannot be written.
    """
    files.check_output(path, '--output', *inputs)
    self._path, self._pieces = path, list[str]()

  def write(self, text: str) -> None:
    """Buffers the text until the file is closed."""
    self._pieces.append(text)

  def flush(self) -> None:
    """Does nothing: the file is written when it is closed."""

  def close(self) -> None:
    """Writes the file."""
    from craft_jax.data.text.utf8 import to_bytes

    files.write_atomic(self._path, to_bytes(''.join(self._pieces)))

  @property
  def is_empty(self) -> bool:
    """Whether no text was written."""
    return not self._pieces


class _Text:
  """Streams samples as text, in order: each follows once the last is done."""

  def __init__(self, sink: _Sink, several: bool, vocabulary: Any):
    del vocabulary
    self._sink, self._several = sink, several
    self._begun = self._done = 0
    self._written = 0

  def update(self, samples: list[Any]) -> None:
    for sample in samples[self._done :]:
      if sample.finish_reason or not self._sink.whole:
        self._add(sample)
      if not sample.finish_reason:
        break
    self._sink.flush()

  def _add(self, sample: Any) -> None:
    write = self._sink.write
    if self._begun == self._done:
      self._begun, self._written = self._done + 1, 0
      if self._several:
        write(f'--- sample {self._begun} ---\n')
      write(self._lead(sample))
    write(sample.text[self._written :])
    self._written = len(sample.text)
    if sample.finish_reason:
      whole = self._lead(sample) + sample.text
      write('' if whole.endswith('\n') else '\n')
      self._done += 1

  def _lead(self, sample: Any) -> str:
    """The prompt, where the text goes on from it."""
    return sample.prepared.shown if sample.prepared.continues else ''


class _Jsonl:
  """Writes finished samples as JSON Lines, in order."""

  def __init__(self, sink: _Sink, several: bool, vocabulary: Any):
    del several
    self._sink, self._vocabulary = sink, vocabulary
    self._done = 0

  def update(self, samples: list[Any]) -> None:
    for sample in samples[self._done :]:
      if not sample.finish_reason:
        break
      self._sink.write(
        strict_json.dumps(sample.to_json(self._vocabulary)) + '\n'
      )
      self._done += 1
    self._sink.flush()


WRITERS: dict[str, Callable[[_Sink, bool, Any], Any]] = {
  'text': _Text,
  'jsonl': _Jsonl,
}


class Clock:
  """Measures throughput in characters per second, without compilation."""

  def __init__(self) -> None:
    """Starts the clock."""
    self._start = time.perf_counter()
    self._first = self._last = self._start
    self._chars = self._first_chars = 0

  def watch(self, batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
    """Yields the batches of text pieces, and counts their characters."""
    for i, batch in enumerate(batches):
      self._last = time.perf_counter()
      self._chars += sum(len(piece.text) for piece in batch)
      if i == 0:
        self._first, self._first_chars = self._last, self._chars
      yield batch

  def figures(self) -> dict[str, Any]:
    """Throughput, without the first dispatch, which compiles."""
    seconds = self._last - self._first
    chars = self._chars - self._first_chars
    return {
      'chars': self._chars,
      'seconds': self._last - self._start,
      'chars_per_second': chars / seconds if seconds else None,
    }
