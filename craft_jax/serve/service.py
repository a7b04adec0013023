"""A model that answers requests: the server without HTTP."""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from craft_jax.errors import UserError
from craft_jax.inference import surprisal
from craft_jax.inference.engine.device import decoding_params
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request as EngineRequest
from craft_jax.inference.engine.resident_constraints import Capacity
from craft_jax.inference.load import Trained
from craft_jax.inference.score import num_reads, stride_of
from craft_jax.serve import convert
from craft_jax.serve.admission import Admission, Limits, Speed, Work
from craft_jax.serve.errors import ApiError
from craft_jax.serve.logs import Log, described
from craft_jax.serve.metrics import Metrics
from craft_jax.serve.schemas import ScoreBody
from craft_jax.serve.worker import Job, Turn, Worker
from craft_jax.types import Params

T = TypeVar('T')
NUM_TOP = 5  # as OpenAI's logprobs
Steps = Generator[float, None, T]
# Tokens that a score reads in one dispatch, for which texts in slots wait: as
# many as the engine reads of prompts between two dispatches of its own.
MOST_READS = 1 << 10
_TURN = 0.02  # seconds after which a thread looks for other work
_SMALL = 1 << 14  # bytes, which are handled in about a millisecond
_PROBE_CHARS = 32  # of each text that is generated to measure the rate


@dataclasses.dataclass(frozen=True)
class Model:
  """The model that is served at the moment.

  Attributes:
    trained: the checkpoint.
    params: its `decoding_params`.
  """

  trained: Trained
  params: Params

  @staticmethod
  def of(trained: Trained) -> 'Model':
    """Rounds the parameters once."""
    return Model(trained, decoding_params(trained.model, trained.params))

  def engine(self, slots: int, limits: Limits) -> Engine:
    """A new engine, everything compiled."""
    engine = Engine(
      self.trained.model,
      self.params,
      self.trained.vocabulary,
      slots=slots,
      # Admission decides; nothing that it has admitted may fail here.
      waiting=1 << 20,
      num_top=min(NUM_TOP, self.trained.vocabulary.size),
      constraint_memory=limits.constraint_memory,
    )
    engine.warm()
    return engine


class Pool:
  """A thread beside the event loop, for what takes long, with a bounded queue.

  Args:
    name: of the thread.
    most: calls that run or wait.
    says: what the calls do, for the error when there are too many.

  Attributes:
    busy: whether the thread is at work.
  """

  def __init__(self, name: str, most: int, says: str):
    self._executor = ThreadPoolExecutor(1, name)
    self._most, self._says, self._number = most, says, 0
    self.busy = False

  async def run(self, function: Callable[..., T], *args: Any) -> T:
    """Calls a function in the thread.

    Raises:
      ApiError: 429, too many wait.
    """

    def step() -> Steps[T]:
      yield 0
      return function(*args)

    return await self.run_steps(step())

  async def run_steps(
    self,
    steps: 'Steps[T]',
    told: Callable[[float, float], Any] = lambda done, seconds: None,
    held: asyncio.Lock | None = None,
  ) -> T:
    """Runs a generator, whose steps take turns with those of others.

    So a short one does not wait for a long one to end, and one that nobody
    awaits any more ends with the step under way.

    Args:
      steps: yields how much each of its steps has done.
      told: called in the event loop with how much was done in one turn, and the
        seconds.
      held: a lock to hold from the first turn to the last.

    Returns:
      What the generator returns.

    Raises:
      ApiError: 429, too many wait.
    """
    if self._number >= self._most:
      raise ApiError(
        429,
        f'{self._number} {self._says} are waiting; send it again later',
        code='server_busy',
        retry_after=1,
      )
    self._number += 1
    loop = asyncio.get_running_loop()
    try:
      async with held or contextlib.nullcontext():
        while True:
          done, seconds, result = await loop.run_in_executor(
            self._executor, self._turn, steps
          )
          told(done, seconds)
          if result:
            return result[0]
    finally:
      self._number -= 1

  def _turn(self, steps: 'Steps[T]') -> tuple[float, float, list[T]]:
    """Runs steps for a moment: how much they did, the seconds, the result."""
    self.busy = True
    begin, done = time.monotonic(), 0.0
    result: list[T] = []
    try:
      done += next(steps)
      while time.monotonic() - begin < _TURN:
        done += next(steps)
    except StopIteration as e:
      result = [e.value]
    finally:
      self.busy = False
    return done, time.monotonic() - begin, result

  def close(self) -> None:
    """Accepts no more calls."""
    self._executor.shutdown(wait=False, cancel_futures=True)


def _without_collection(function: Callable[..., T], *args: Any) -> T:
  """Calls a function that makes many objects and no cycles.

  The garbage collector would look at 300,000 lists again and again, for 400 ms
  in which no other thread runs, and find nothing.
  """
  gc.disable()
  try:
    return function(*args)
  finally:
    gc.enable()


class Service:
  """Answers requests with a model.

  Args:
    model: the model to serve.
    name: of the model.
    slots: texts that are generated at once.
    limits: what is refused.
    log: takes note of what happens.

  Attributes:
    capacity: states of constraints that the device has room for.
    compiler: compiles constraints.
    searching: held by the beam search that is under way.

  Raises:
    UserError: there is no room for any constraint.
  """

  def __init__(
    self, model: Model, name: str, slots: int, limits: Limits, log: Log
  ):
    self.model, self.name, self.limits = model, name, limits
    self.capacity = Capacity(limits.constraint_memory, model.trained.vocabulary)
    self.metrics = Metrics()
    self.admission = Admission(slots, limits.max_wait, limits.deadline)
    self.draining = False
    self.created = int(time.time())
    self._slots, self._log = slots, log
    self.compiler = Pool('compiler', limits.max_compiling, 'constraints')
    self._aside = Pool('aside', limits.max_connections, 'requests')
    self._side = Pool('side', limits.max_searches, 'searches and scores')
    self.searching = asyncio.Lock()
    self._worker: Worker | None = None
    self.metrics.slots.set(slots)
    self.metrics.states.set(self.capacity.most)
    self.metrics.promised.set(limits.max_wait)
    self.metrics.step.set(model.trained.meta.step)

  # --- start and end ---

  async def start(self) -> None:
    """Compiles everything and measures how fast texts are generated."""
    self._worker = await asyncio.to_thread(
      Worker,
      functools.partial(self.model.engine, self._slots, self.limits),
      asyncio.get_running_loop(),
      self._on_turn,
      self._on_error,
    )
    self._worker.start()
    await self._probe()
    self.metrics.watch_compilations()

  async def _probe(self) -> None:
    """Fills all slots for a moment, so that the rate is known."""
    trained = self.model.trained
    request = convert.Request(max_chars=_PROBE_CHARS, ignore_end=True)
    prepared = convert.prepare(trained, request)
    for _ in range(2):  # the first is slower
      asked = EngineRequest(
        prepared.ids, _PROBE_CHARS, prepared.settings, samples=self._slots,
        slide=True,
      )  # fmt: skip
      job = Job([asked])
      self.running.submit(job)
      left = self._slots
      while left:
        event = await job.events.get()
        if isinstance(event, ApiError):
          raise event
        left -= sum(bool(piece.finish_reason) for _, piece in event)

  async def stop(self) -> None:
    """Ends everything; unfinished requests get an error."""
    if self._worker is not None:
      await asyncio.to_thread(self._worker.stop)
    self.compiler.close()
    self._side.close()
    self._aside.close()

  @property
  def lingers(self) -> bool:
    """Whether a thread is at work that cannot be stopped."""
    return self.compiler.busy or self._side.busy

  def end_all(self) -> None:
    """Ends what is under way with an error."""
    if self._worker is not None:
      self._worker.end_all()

  async def reload(self, trained: Trained) -> None:
    """Serves another checkpoint; requests under way finish with the old one."""
    model = await asyncio.to_thread(Model.of, trained)
    make = functools.partial(model.engine, self._slots, self.limits)
    # Compiled here, while the other engine goes on.
    self.running.replace(make, await asyncio.to_thread(make))
    self.model = model
    self.metrics.reloads.inc()
    self.metrics.step.set(trained.meta.step)
    self._log.note('reloaded', step=trained.meta.step)

  @property
  def running(self) -> Worker:
    """The worker, once the service is started."""
    assert self._worker is not None, 'start it first'
    return self._worker

  def _on_turn(self, turn: Turn) -> None:
    m = self.metrics
    m.busy.set(turn.busy)
    m.waiting.set(turn.waiting)
    m.tokens.inc(turn.tokens)
    m.dispatches.inc(turn.dispatches)
    if turn.busy >= turn.slots:
      self.admission.measured(turn.tokens, turn.seconds)
      m.rate.set(self.admission.rate)

  def _on_error(self, error: BaseException) -> None:
    self.metrics.failures.inc()
    self._log.note('dispatch failed', error=described(error))

  # --- beside the event loop ---

  async def aside(self, size: int, function: Callable[..., T], *args: Any) -> T:
    """Calls a function, in a thread if that may take long.

    No single operation of the interpreter in it may take long, since no other
    thread runs meanwhile.

    Args:
      size: bytes to which the time is in proportion.
      function: called with the other arguments.
      *args: arguments of the function.
    """
    if size <= _SMALL:
      return function(*args)
    return await self._aside.run(_without_collection, function, *args)

  # --- beside the engine ---

  async def on_side(
    self,
    steps: Steps[T],
    speed: Speed,
    told: Callable[[float], Any] = lambda done: None,
    held: asyncio.Lock | None = None,
  ) -> T:
    """Runs a search or a score in their thread, in turns with the others.

    Args:
      steps: yields how much each step has done.
      speed: takes note of how fast the steps are.
      told: called with how much was done in each turn.
      held: a lock to hold until the end.

    Raises:
      ApiError: 429; 400 for what a step finds wrong with its input.
    """
    compiled = self.metrics.num_compiled

    def measured(done: float, seconds: float) -> None:
      nonlocal compiled
      if compiled == self.metrics.num_compiled and done:
        speed.measured(done, seconds)
      compiled = self.metrics.num_compiled  # which took most of its time
      told(done)

    try:
      return await self._side.run_steps(steps, measured, held)
    except UserError as e:
      raise ApiError(400, str(e)) from e

  # --- scores ---

  async def score(self, body: ScoreBody) -> list[dict[str, Any]]:
    """The metrics of each text, as `craft score` reports them.

    Raises:
      ApiError: any.
    """
    trained = self.model.trained
    texts = [body.text] if isinstance(body.text, str) else body.text
    if not 1 <= len(texts) <= self.limits.max_texts:
      raise ApiError(
        400,
        f'{len(texts)} texts; give 1 to {self.limits.max_texts}',
        param='text',
      )
    context = trained.cfg.model.context
    try:
      stride = stride_of(body.stride, context)
    except UserError as e:
      raise ApiError(400, str(e), param='stride') from e
    # A character is at most as many ids as it has bytes; BOS comes before.
    scored = sum(
      num_reads(_most_ids(trained, text) + 1, context, stride)
      for text in texts
      if text
    )
    work = Work(scored=scored)
    self.admission.check_alone(self.admission.beside(work), 'text')
    again = context // stride or 1
    reads, most = again * sum(map(len, texts)), 1 << 21
    if reads > most:
      raise ApiError(
        400,
        f'each of the tokens would be read {again} times, {reads} in all, '
        f'which is more than {most}; give a larger stride or less text',
        param='stride',
      )
    claim = self.admission.enter(work, 'text')

    def steps() -> Steps[list[dict[str, Any]]]:
      named = [(str(i), text.encode()) for i, text in enumerate(texts)]
      found = yield from surprisal.score_steps(
        trained, named, stride=stride, each=body.per_char,
        most_reads=MOST_READS,
      )  # fmt: skip
      shown = []
      for result in found:
        shown.append(_shown(result, body.per_char))
        yield 0
      return shown

    try:
      return await self.on_side(steps(), self.admission.scores, claim.advanced)
    finally:
      claim.release()


def _most_ids(trained: Trained, text: str) -> int:
  """An upper bound of the ids of a text."""
  if trained.vocabulary.kind == 'char':
    return len(text)
  return len(text.encode())


def _shown(result: Any, per_char: bool) -> dict[str, Any]:
  from craft_jax.runs.writers import to_json

  figures = dict(result.figures)
  figures['index'] = int(figures.pop('name'))
  if per_char:
    figures['per_char'] = {
      'characters': list(result.characters),
      'offsets': result.offsets,
      **result.nats,
    }
  return to_json(figures)
