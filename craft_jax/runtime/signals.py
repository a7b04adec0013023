"""Signals that ask a run to save and end.

SIGTERM comes from schedulers, SIGINT from Ctrl-C, SIGUSR1 from SLURM before
the time limit, SIGHUP from a terminal that has gone. All mean the same.
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
_PARENT = 'CRAFT_PARENT'  # whose child a run is
_SET_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
_CTRL_C_GIVES_UP = 3  # saving takes longer than patience, or hangs


def as_child() -> dict[str, str]:
  """The environment of a run that this process starts and answers for."""
  return {_PARENT: str(os.getpid())}


def follow_parent() -> None:
  """Has a run that was started `as_child` save when its parent ends.

  The kernel sends it a SIGTERM then, on Linux.
  """
  parent = os.environ.get(_PARENT)
  if parent is None or sys.platform != 'linux':
    return
  ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
  if os.getppid() != int(parent):
    os.kill(os.getpid(), signal.SIGTERM)


class Interrupts:
  """A context in which signals are noted instead of ending the program.

  Until `defer` is called nothing needs saving and a signal raises
  `Interrupted`. From then on it only makes `requested` true, however many
  come, so that a scheduler's second signal does not cut a save short; the
  third Ctrl-C raises `KeyboardInterrupt`. A signal that was ignored before
  (`nohup`) stays ignored. Outside the main thread signals are left alone.
  """

  def __init__(self) -> None:
    """Installs nothing yet."""
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
    """From now on there is something to save.

    Args:
      agree: of a run of several processes: called by all of them with whether
        this one was asked to end, tells all of them alike whether to.

    Raises:
      Interrupted: a signal came before, and what it raised was lost.
    """
    self._deferred, self._agree = True, agree
    if self._event.is_set() and agree is None:
      raise Interrupted(f'interrupted by {self._first}')

  def requested(self) -> bool:
    """Whether the run should save and end; all processes must ask alike."""
    if self._agree is not None:
      return self._agree(self._event.is_set())
    return self._event.is_set()

  def during(self, function: Callable[[], T]) -> T | None:
    """The result of `function`, or None as soon as a signal came.

    It runs in a thread of its own, because a handler cannot run while the main
    thread is in a compiler. After a signal it goes on to its end, for nothing.
    In a run of several processes it is waited for.
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
      # Lost where it hits a callback of the interpreter: `defer` raises again.
      raise Interrupted(f'interrupted by {self._first}')
    if number == signal.SIGINT:
      self._presses += 1
      if self._presses >= _CTRL_C_GIVES_UP:
        raise KeyboardInterrupt
