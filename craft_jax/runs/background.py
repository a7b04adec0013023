"""A writer in a thread of its own: slow or broken, training does not wait."""

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from craft_jax.errors import one_line
from craft_jax.runs.writers import Writer

_MOST_WAITING = 20_000  # rows; about 20 MB
_END_SECONDS = 20.0  # for what is still to be written when a run stops
_PATIENCE = (
  10  # times as long when it has finished: no scheduler waits to kill it
)


class Background:
  """A `Writer` that hands everything to another one in a thread.

  Whatever goes wrong there is told once, and the run goes on without it.
  """

  def __init__(
    self,
    name: str,
    make: Callable[[], Writer],
    warn: Callable[[str], None],
    most_waiting: int = _MOST_WAITING,
    end_seconds: float = _END_SECONDS,
  ):
    """Starts at once; `make` is called in the thread.

    Args:
      name: for the warning.
      make: opens the writer.
      warn: told of a failure.
      most_waiting: rows that may wait to be written; more are left out.
      end_seconds: to wait for those that are when the run stops; longer when
        it has finished.
    """
    self._name, self._make, self._warn = name, make, warn
    self._end_seconds = end_seconds
    self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(
      most_waiting
    )
    self._failed = self._ended = False
    self._thread = threading.Thread(
      target=self._work, name=f'{name} writer', daemon=True
    )
    self._thread.start()

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records numbers of one step, soon."""
    self._put('log', step, dict(metrics))

  def text(self, step: int, text: str) -> None:
    """Records text of one step, soon."""
    self._put('text', step, text)

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Records the metrics of the run and waits until all is written."""
    self._put('finish', dict(summary))
    self._end(_PATIENCE * self._end_seconds)

  def close(self) -> None:
    """Waits until all is written. Repeatable."""
    if not self._ended:
      self._put('close')
      self._end(self._end_seconds)

  def _put(self, method: str, *args: Any) -> None:
    if self._failed or self._ended:
      return
    try:
      self._queue.put_nowait((method, args))
    except queue.Full:
      self._fail('it falls behind')

  def _end(self, seconds: float) -> None:
    if self._ended:
      return
    self._ended = True
    with contextlib.suppress(queue.Full):
      self._queue.put_nowait(None)
    self._thread.join(seconds)
    if self._thread.is_alive():
      self._fail(f'it has not ended after {seconds:.0f} s')

  def _fail(self, why: str) -> None:
    if not self._failed:
      self._failed = True
      self._warn(
        f'nothing more goes to {self._name}: {why}; training goes on, and '
        'metrics.jsonl has it all'
      )

  def _work(self) -> None:
    try:
      writer = self._make()
      while (item := self._queue.get()) is not None:
        method, args = item
        getattr(writer, method)(*args)
        if self._failed:
          return
    except BaseException as e:  # some libraries exit
      self._fail(one_line(e))
