"""The thread that owns the engine: commands in, pieces of text out.

One queue leads in, `call_soon_threadsafe` out. The thread executes the commands
that have come, runs a dispatch of the engine and passes on what the dispatch
before has generated. Nothing else ever touches an engine.
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

# The numbers of a job's prompts and their pieces, or what ended the job.
Event = list[tuple[int, Piece]] | ApiError


class Job:
  """Requests of the engine that belong together.

  Attributes:
    requests: one per prompt.
    events: what came of them, for the event loop.
    handles: of the requests that are not finished, with their engine; of the
      worker's thread.
  """

  def __init__(self, requests: Sequence[Request]):
    self.requests = requests
    self.events: asyncio.Queue[Event] = asyncio.Queue()
    self.handles: set[tuple[Engine, int]] = set()


@dataclasses.dataclass(frozen=True)
class Turn:
  """What one dispatch did, for the metrics.

  Attributes:
    seconds: since the one before.
    dispatches: 1, or 0 where there is nothing to do any more.
    tokens: generated.
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
    make: makes an engine; called again when one has failed.
    loop: in which jobs are awaited.
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
    # Engines that have been replaced, and finish what they have begun.
    self._old: list[Engine] = []
    self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    self._jobs: dict[tuple[Engine, int], tuple[Job, int]] = {}
    self._stopped = False
    self._broken = False  # the engine failed, and so did making another
    self._last = time.monotonic()
    self._thread = threading.Thread(target=self._run, name='engine')

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def stop(self) -> None:
    """Ends after the dispatch under way; unfinished jobs get an error."""
    self._commands.put(self._end)
    self._thread.join()

  def submit(self, job: Job) -> None:
    """Starts a job; the rest comes as its events."""
    self._commands.put(lambda: self._submit(job))

  def cancel(self, job: Job) -> None:
    """Ends a job, without an event."""
    self._commands.put(lambda: self._cancel(job))

  def end_all(self) -> None:
    """Ends every job under way with an error."""
    self._commands.put(lambda: self._fail_jobs(closing(), self._engines()))

  def replace(self, make: Callable[[], Engine], engine: Engine) -> None:
    """Gives new jobs to another engine; the others finish where they are.

    Args:
      make: makes an engine; called when one has failed.
      engine: one that it has made, and nobody else uses.
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
    engine = self._engine
    try:
      for number, request in enumerate(job.requests):
        place = engine, engine.submit(request)
        job.handles.add(place)
        self._jobs[place] = job, number
    except Full as e:
      self._cancel(job)
      self._tell(job, ApiError(429, str(e), code='server_busy', retry_after=1))
    except UserError as e:
      self._cancel(job)
      self._tell(job, ApiError(400, str(e)))
    except Exception as e:  # an error of the device, as in a dispatch
      if not job.handles:
        self._tell(job, _failed())
      self._fail(engine, e)

  def _cancel(self, job: Job) -> None:
    while job.handles:  # none if it has ended by itself
      engine, handle = place = job.handles.pop()
      self._jobs.pop(place, None)
      engine.cancel(handle)

  def _step(self, engine: Engine) -> None:
    try:
      pieces = engine.step()
    except Exception as e:  # whatever it is, it is no reason to end the server
      self._fail(engine, e)
      return
    events: dict[Job, list[tuple[int, Piece]]] = {}
    for handle, piece in pieces:
      job, number = self._jobs[engine, handle]
      events.setdefault(job, []).append((number, piece))
    for handle in {handle for handle, _ in pieces}:
      if not engine.is_known(handle):  # all of its samples are finished
        job, _ = self._jobs.pop((engine, handle))
        job.handles.remove((engine, handle))
    if events:
      self._loop.call_soon_threadsafe(_deliver, events)
    self._tell_turn(1, sum(len(piece.ids) for _, piece in pieces))

  def _fail(self, engine: Engine, error: BaseException) -> None:
    """Ends the requests of a failed engine, and has another one take over."""
    self._loop.call_soon_threadsafe(self._on_error, error)
    self._fail_jobs(_failed(), [engine])
    if engine is self._engine:
      self._renew()
    else:
      self._old.remove(engine)

  def _renew(self) -> None:
    """Makes an engine for one that has failed, or tries again at a next job."""
    try:
      self._engine, self._broken = self._make(), False
    except Exception as e:  # the thread goes on, or no job would get an error
      self._broken = True
      self._loop.call_soon_threadsafe(self._on_error, e)

  def _fail_jobs(self, error: ApiError, engines: Sequence[Engine]) -> None:
    jobs = dict.fromkeys(
      job for (engine, _), (job, _) in self._jobs.items() if engine in engines
    )
    for job in jobs:
      try:
        self._cancel(job)
      except Exception as e:  # of an engine that has failed
        self._loop.call_soon_threadsafe(self._on_error, e)
      self._tell(job, error)
    self._jobs = {k: v for k, v in self._jobs.items() if v[0] not in jobs}

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
