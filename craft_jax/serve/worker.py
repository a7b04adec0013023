"""The thread that owns the engine: commands in, pieces of text out.

One queue leads in, `call_soon_threadsafe` out. The thread takes what has come,
has the engine do a dispatch and gives on what the dispatch before has written.
Nothing else ever touches an engine.
"""

import asyncio
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from craft_jax.errors import UserError
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request
from craft_jax.inference.engine.scheduler import Full
from craft_jax.inference.sampling.output import Piece
from craft_jax.serve.errors import ApiError, closing

# Of a job: its prompts' numbers and their pieces, or what ended it.
Event = list[tuple[int, Piece]] | ApiError


class Job:
  """Requests of the engine that belong together.

  Attributes:
    requests: one per prompt.
    events: what came of them, for the event loop.
  """

  def __init__(self, requests: Sequence[Request]):
    self.requests = requests
    self.events: asyncio.Queue[Event] = asyncio.Queue()


@dataclasses.dataclass(frozen=True)
class Turn:
  """What one dispatch did, for the figures.

  Attributes:
    seconds: since the one before.
    dispatches: 1, or 0 as it says only that there is nothing to do.
    tokens: written.
    busy: slots that are in use.
    slots: that there are.
    waiting: requests without a slot.
  """

  seconds: float
  dispatches: int
  tokens: int
  busy: int
  slots: int
  waiting: int


class Worker:
  """Runs jobs on an engine.

  Args:
    make: an engine that is ready; called again when one has failed.
    loop: that jobs are awaited in.
    on_turn: called in the loop after each dispatch.
    on_error: called in the loop with what a dispatch raised.
  """

  def __init__(
    self,
    make: Callable[[], Engine],
    loop: asyncio.AbstractEventLoop,
    on_turn: Callable[[Turn], Any],
    on_error: Callable[[BaseException], Any],
  ):
    self._make, self._loop = make, loop
    self._on_turn, self._on_error = on_turn, on_error
    self._engine = make()
    # Those that finish what they have begun, and have been replaced.
    self._old: list[Engine] = []
    self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    self._places: dict[Job, tuple[Engine, dict[int, int]]] = {}
    self._jobs: dict[tuple[Engine, int], tuple[Job, int]] = {}
    self._stopped = False
    self._broken = False  # the engine failed, and so did making another
    self._last = time.monotonic()
    self._thread = threading.Thread(target=self._run, name='engine')

  def start(self) -> None:
    """Begins."""
    self._thread.start()

  def stop(self) -> None:
    """Ends after the dispatch under way; what is not finished is told so."""
    self._commands.put(self._end)
    self._thread.join()

  def submit(self, job: Job) -> None:
    """Takes a job; its events tell the rest."""
    self._commands.put(lambda: self._submit(job))

  def cancel(self, job: Job) -> None:
    """Ends a job, of which nothing more is told."""
    self._commands.put(lambda: self._cancel(job))

  def end_all(self) -> None:
    """Has every job under way end with an error."""
    self._commands.put(lambda: self._fail_jobs(closing(), self._engines()))

  def replace(self, make: Callable[[], Engine], engine: Engine) -> None:
    """New jobs go to another engine; the others are finished where they are.

    Args:
      make: as of `Worker`.
      engine: that it has made, and nobody else uses.
    """

    def swap() -> None:
      self._make = make
      self._old.append(self._engine)
      self._engine, self._broken = engine, False

    self._commands.put(swap)

  # --- the thread ---

  def _engines(self) -> list[Engine]:
    return [*self._old, self._engine]

  def _run(self) -> None:
    while not self._stopped:
      busy = [engine for engine in self._engines() if engine.busy]
      self._take_commands(wait=not busy)
      self._old = [engine for engine in self._old if engine.busy]
      for engine in self._engines():
        if engine.busy:
          self._step(engine)

  def _take_commands(self, wait: bool) -> None:
    if wait:
      self._tell_turn(0, 0)
      self._commands.get()()
      self._last = time.monotonic()
    while not self._commands.empty():
      self._commands.get()()

  def _submit(self, job: Job) -> None:
    if self._stopped:
      self._tell(job, closing())
      return
    if self._broken:
      self._renew()
    if self._broken:
      self._tell(job, _failed())
      return
    engine, handles = self._engine, dict[int, int]()
    self._places[job] = engine, handles
    try:
      for number, request in enumerate(job.requests):
        handle = engine.submit(request)
        handles[number] = handle
        self._jobs[engine, handle] = job, number
    except Full as e:
      self._cancel(job)
      self._tell(job, ApiError(429, str(e), code='server_busy', retry_after=1))
    except UserError as e:
      self._cancel(job)
      self._tell(job, ApiError(400, str(e)))
    except Exception as e:  # as of a dispatch: it is the device's
      self._fail(engine, e)

  def _cancel(self, job: Job) -> None:
    if job not in self._places:
      return  # it has ended by itself
    engine, handles = self._places.pop(job)
    for handle in handles.values():
      engine.cancel(handle)
      self._jobs.pop((engine, handle), None)

  def _step(self, engine: Engine) -> None:
    try:
      pieces = engine.step()
    except Exception as e:  # whatever it is, it is no reason to end the server
      self._fail(engine, e)
      return
    events: dict[Job, list[tuple[int, Piece]]] = {}
    tokens = 0
    for handle, piece in pieces:
      job, number = self._jobs[engine, handle]
      tokens += len(piece.ids)
      events.setdefault(job, []).append((number, piece))
    for job, of in events.items():
      self._forget_finished(job, {number for number, _ in of})
    if events:
      self._loop.call_soon_threadsafe(_deliver, events)
    self._tell_turn(1, tokens)

  def _forget_finished(self, job: Job, numbers: set[int]) -> None:
    """Forgets requests all of whose samples are finished, then their job."""
    engine, handles = self._places[job]
    for number in numbers:
      if not engine.is_known(handles[number]):
        del self._jobs[engine, handles.pop(number)]
    if not handles:
      del self._places[job]

  def _fail(self, engine: Engine, error: BaseException) -> None:
    """A device call failed: its requests end, another engine takes over."""
    self._loop.call_soon_threadsafe(self._on_error, error)
    self._fail_jobs(_failed(), [engine])
    if engine is self._engine:
      self._renew()
    else:
      self._old.remove(engine)

  def _renew(self) -> None:
    """Another engine for one that has failed; if that fails, at a next job."""
    try:
      self._engine, self._broken = self._make(), False
    except Exception as e:  # the thread goes on, or nobody is told anything
      self._broken = True
      self._loop.call_soon_threadsafe(self._on_error, e)

  def _fail_jobs(self, error: ApiError, engines: Sequence[Engine]) -> None:
    for job, (engine, _) in list(self._places.items()):
      if engine in engines:
        try:
          self._cancel(job)
        except Exception as e:  # of an engine that has failed
          self._places.pop(job, None)
          self._loop.call_soon_threadsafe(self._on_error, e)
        self._tell(job, error)
    self._jobs = {
      key: value
      for key, value in self._jobs.items()
      if value[0] in self._places
    }

  def _end(self) -> None:
    self._fail_jobs(closing(), self._engines())
    self._stopped = True

  # --- out ---

  def _tell(self, job: Job, event: Event) -> None:
    self._loop.call_soon_threadsafe(_deliver, {job: event})

  def _tell_turn(self, dispatches: int, tokens: int) -> None:
    now = time.monotonic()
    limits = self._engine.scheduler.limits
    turn = Turn(
      now - self._last,
      dispatches,
      tokens,
      sum(limits.slots - e.scheduler.num_free for e in self._engines()),
      limits.slots,
      sum(e.scheduler.num_waiting for e in self._engines()),
    )
    self._last = now
    self._loop.call_soon_threadsafe(self._on_turn, turn)


def _deliver(events: dict[Job, Event] | dict[Job, list[tuple[int, Piece]]]):
  for job, event in events.items():
    job.events.put_nowait(event)


def _failed() -> ApiError:
  return ApiError(
    500, 'the model failed; send it again', code='failed', retry_after=1
  )
