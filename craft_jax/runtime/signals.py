"""Signals on which a run saves a checkpoint and stops.

SIGTERM comes from schedulers, SIGINT from Ctrl-C, SIGUSR1 from SLURM before the
time limit, and SIGHUP from a closed terminal. All are handled alike.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from craft_jax.errors import Interrupted

T = TypeVar('T')
_NAMES = ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP')
KINDS = tuple(getattr(signal, n) for n in _NAMES if hasattr(signal, n))
_PARENT = 'CRAFT_PARENT'  # process id of the parent
_SET_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
_CTRL_C_GIVES_UP = 3  # presses that abort a save that is slow or hangs


def as_child() -> dict[str, str]:
  """Environment variables for a run started as a child of this process."""
  return {_PARENT: str(os.getpid())}


def follow_parent() -> None:
  """Makes a run started with `as_child` save and stop if its parent ends.

  On Linux, the kernel then sends SIGTERM; elsewhere this does nothing.
  """
  parent = os.environ.get(_PARENT)
  if parent is None or sys.platform != 'linux':
    return
  ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
  if os.getppid() != int(parent):
    os.kill(os.getpid(), signal.SIGTERM)


class Interrupts:
  """Context manager that turns signals into a request to save and stop.

  Until `defer` is called, a signal raises `Interrupted`, since there is nothing
  to save. From then on it only makes `requested` return True, so that a second
  signal of a scheduler does not abort a save; the third Ctrl-C raises
  `KeyboardInterrupt`. Signals that were ignored (`nohup`) stay ignored. Outside
  the main thread this does nothing.
  """

  def __init__(self) -> None:
    """Creates the context; entering it installs the handlers."""
    self._before: dict[signal.Signals, Any] = {}
    self._deferred = False
    self._event = threading.Event()
    self._first = ''
    self._presses = 0
    self._agree: Callable[[bool], bool] | None = None

  def __enter__(self) -> 'Interrupts':
    if threading.current_thread() is threading.main_thread():
      for kind in KINDS:
        handler = signal.getsignal(kind)
        if handler is not signal.SIG_IGN:
          self._before[kind] = handler
          signal.signal(kind, self._on_signal)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def defer(self, agree: Callable[[bool], bool] | None = None) -> None:
    """Lets `requested` report signals from now on, instead of raising.

    Args:
      agree: for several processes, `distributed.stop_agreement()`.

    Raises:
      Interrupted: a signal came earlier, but its exception was lost.
    """
    self._deferred, self._agree = True, agree
    if self._event.is_set() and agree is None:
      raise Interrupted(f'interrupted by {self._first}')

  def requested(self) -> bool:
    """Whether the run should save and stop. Collective with `agree`."""
    if self._agree is not None:
      return self._agree(self._event.is_set())
    return self._event.is_set()

  def during(self, function: Callable[[], T]) -> T | None:
    """Returns the result of `function`, or None as soon as a signal comes.

    Runs it in a thread, because Python's signal handlers cannot run while the
    main thread compiles. After a signal, the thread continues in the
    background. A run of several processes waits for the result.
    """
    if self._agree is not None or not self._before:
      return function()
    result: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
      try:
        result.append(function())
      except BaseException as e:  # raised again below, in the main thread
        errors.append(e)

    thread = threading.Thread(target=call, name='during')
    thread.start()
    while thread.is_alive() and not self._event.is_set():
      thread.join(0.05)
    if errors:
      raise errors[0]
    return result[0] if result else None

  def _on_signal(self, number: int, frame: Any) -> None:
    del frame
    self._first = self._first or signal.Signals(number).name
    self._event.set()
    if not self._deferred:
      # Python drops exceptions raised in callbacks such as finalizers, so that
      # `defer` raises it again.
      raise Interrupted(f'interrupted by {self._first}')
    if number == signal.SIGINT:
      self._presses += 1
      if self._presses >= _CTRL_C_GIVES_UP:
        raise KeyboardInterrupt
