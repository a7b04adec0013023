"""A model that answers requests: all of the server but HTTP."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from craft_jax import score, surprisal
from craft_jax.engine.engine import Engine
from craft_jax.engine.requests import Request as EngineRequest
from craft_jax.errors import UserError
from craft_jax.sample.answers import Answer, Answers, Prepared
from craft_jax.sample.generate import decoding_params, top_bucket
from craft_jax.serve import answers, fields
from craft_jax.serve.answers import Text
from craft_jax.serve.errors import ApiError
from craft_jax.serve.limits import Admission, Claim, Limits
from craft_jax.serve.logs import Log
from craft_jax.serve.metrics import Metrics
from craft_jax.serve.worker import Job, Turn, Worker
from craft_jax.trained import Trained
from craft_jax.types import Params

T = TypeVar('T')
NUM_TOP = 5  # as OpenAI's logprobs
_PROBE_CHARS = 32  # of each text that is written to measure the rate


@dataclasses.dataclass(frozen=True)
class Model:
  """What is served at the moment.

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
    """A new one, everything compiled."""
    engine = Engine(
      self.trained.model,
      self.params,
      self.trained.vocabulary,
      slots=slots,
      # The admission decides; nothing is to fail here that was taken there.
      waiting=1 << 20,
      num_top=min(NUM_TOP, self.trained.vocabulary.size),
    )
    engine.warm()
    return engine


class Pool:
  """A thread beside the event loop, for what takes long; refuses a crowd.

  Args:
    name: of the thread.
    most: that run or wait.
    says: what it does, for the refusal.
  """

  def __init__(self, name: str, most: int, says: str):
    self._executor = ThreadPoolExecutor(1, name)
    self._most, self._says, self._number = most, says, 0

  async def run(self, function: Callable[..., T], *args: Any) -> T:
    """The result of a call.

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
    future = loop.run_in_executor(self._executor, function, *args)
    future.add_done_callback(self._done)
    return await future

  def _done(self, future: asyncio.Future[Any]) -> None:
    # Not where it is awaited: who has gone away still occupies the thread.
    self._number -= 1
    if not future.cancelled():
      future.exception()

  def close(self) -> None:
    """Takes no more."""
    self._executor.shutdown(wait=False, cancel_futures=True)


class Service:
  """Answers requests with a model.

  Args:
    model: to be served.
    name: of it.
    slots: texts that are written at once.
    limits: what is refused.
    log: where to say what happens.
  """

  def __init__(
    self, model: Model, name: str, slots: int, limits: Limits, log: Log
  ):
    self.model, self.name, self.limits = model, name, limits
    self.metrics = Metrics()
    self.admission = Admission(slots, limits.max_wait)
    self.draining = False
    self.created = int(time.time())
    self._slots, self._log = slots, log
    self._compiler = Pool('compiler', limits.max_compiling, 'constraints')
    self._side = Pool('side', limits.max_searches, 'searches and scores')
    self._worker: Worker | None = None
    self.metrics.slots.set(slots)
    self.metrics.promised.set(limits.max_wait)
    self.metrics.step.set(model.trained.meta.step)

  # --- its life ---

  async def start(self) -> None:
    """Compiles everything and measures how fast texts are written."""
    loop = asyncio.get_running_loop()
    model = self.model

    def make() -> Engine:
      return model.engine(self._slots, self.limits)

    self._worker = await asyncio.to_thread(
      Worker, make, loop, self._on_turn, self._on_error
    )
    self._worker.start()
    await self._probe()
    self.metrics.watch_compilations()

  async def _probe(self) -> None:
    """Fills all slots for a moment, so that the rate is known."""
    trained = self.model.trained
    request = fields.Request(max_chars=_PROBE_CHARS, ignore_end=True)
    prepared = fields.prepare(trained, request)
    for _ in range(2):  # the first is slower
      asked = EngineRequest(
        prepared.ids, _PROBE_CHARS, prepared.settings, samples=self._slots,
        slide=True,
      )  # fmt: skip
      job = Job([asked])
      self._running.submit(job)
      left = self._slots
      while left:
        event = await job.events.get()
        if isinstance(event, ApiError):
          raise event
        left -= sum(bool(piece.finish_reason) for _, piece in event)

  async def stop(self) -> None:
    """Ends everything; what is not finished is told so."""
    if self._worker is not None:
      await asyncio.to_thread(self._worker.stop)
    self._compiler.close()
    self._side.close()

  def end_all(self) -> None:
    """Ends what is under way, as the grace is over."""
    if self._worker is not None:
      self._worker.end_all()

  async def reload(self, trained: Trained) -> None:
    """Serves another checkpoint; what is under way goes on with the old."""
    model = await asyncio.to_thread(Model.of, trained)
    slots, limits = self._slots, self.limits
    self._running.replace(lambda: model.engine(slots, limits))
    self.model = model
    self.metrics.reloads.inc()
    self.metrics.step.set(trained.meta.step)
    self._log.note('reloaded', step=trained.meta.step)

  @property
  def _running(self) -> Worker:
    assert self._worker is not None, 'start it first'
    return self._worker

  def _on_turn(self, turn: Turn) -> None:
    m = self.metrics
    m.busy.set(turn.busy)
    m.waiting.set(turn.waiting)
    m.symbols.inc(turn.symbols)
    if turn.busy >= turn.slots and turn.symbols:
      self.admission.measured(turn.symbols, turn.seconds)
      m.rate.set(self.admission.rate)

  def _on_error(self, error: BaseException) -> None:
    self.metrics.failures.inc()
    self._log.note('dispatch failed', error=repr(error))

  # --- completions ---

  async def open(self, body: fields.CompletionBody) -> 'Writing':
    """Takes a request for completions, or refuses it.

    Raises:
      ApiError: any.
    """
    fields.check_model(body.model, self.name)
    model = self.model
    trained = model.trained
    wanted = fields.read(body, self.limits, trained.cfg.model.context)
    if wanted.has_constraint:
      prepared = await self._compiler.run(wanted.prepare, trained)
    else:
      prepared = wanted.prepare(trained)
    for one in prepared:
      if len(one.ids) > self.limits.max_prompt:
        raise ApiError(
          400,
          f'a prompt has {len(one.ids)} symbols, more than the '
          f'{self.limits.max_prompt} of this server',
          param='prompt',
        )
    prompts = sum(len(one.ids) for one in prepared)
    request = wanted.request
    draws = not (request.beams or wanted.echo_only)
    texts = len(prepared) * request.num_drawn if draws else 0
    claim = self.admission.enter(prompts, texts, request.max_chars)
    self.metrics.prompt_symbols.inc(prompts)
    return Writing(self, model, wanted, prepared, claim)

  async def on_side(self, function: Callable[..., T], *args: Any) -> T:
    """What a search or a score needs, in their thread.

    Raises:
      ApiError: 429; 400 for what a call finds wrong with its input.
    """
    try:
      return await self._side.run(function, *args)
    except UserError as e:
      raise ApiError(400, str(e)) from e

  # --- scores ---

  async def score(self, body: fields.ScoreBody) -> list[dict[str, Any]]:
    """The figures of each text, as `craft score` has them.

    Raises:
      ApiError: any.
    """
    fields.check_model(body.model, self.name)
    trained = self.model.trained
    texts = [body.text] if isinstance(body.text, str) else body.text
    if not 1 <= len(texts) <= self.limits.max_texts:
      raise ApiError(
        400,
        f'{len(texts)} texts; give 1 to {self.limits.max_texts}',
        param='text',
      )
    context = trained.cfg.model.context
    if body.stride > context:
      raise ApiError(
        400,
        f'stride={body.stride} is more than the context of {context}',
        param='stride',
      )
    named = [(str(i), text.encode('utf-8')) for i, text in enumerate(texts)]
    found = await self.on_side(
      lambda: surprisal.score_texts(
        trained, named, stride=body.stride, each=body.per_char
      )
    )
    return [_shown(result, body.per_char) for result in found]


def _shown(result: Any, per_char: bool) -> dict[str, Any]:
  from craft_jax.track.writers import to_json

  figures = dict(result.figures)
  figures['index'] = int(figures.pop('name'))
  if per_char:
    figures['per_char'] = {
      'characters': list(result.characters),
      'offsets': result.offsets,
      **result.nats,
    }
  return to_json(figures)


class Writing:
  """A request that was taken, while its texts are written.

  Attributes:
    texts: all that are drawn, in the order of the prompts.
    each: of one prompt.
    head: what its objects have in common.
  """

  def __init__(
    self,
    service: Service,
    model: Model,
    wanted: fields.Wanted,
    prepared: list[Prepared],
    claim: Claim,
  ):
    self._service, self._model = service, model
    self._wanted, self._prepared, self._claim = wanted, prepared, claim
    self._job: Job | None = None
    self._begin = time.monotonic()
    self._seen: dict[int, float] = {}  # when a text last grew
    self.each = wanted.request.num_drawn
    self.head = answers.Head(service.name)
    groups = [Answer(one, self.each) for one in prepared]
    self._answers = groups
    vocabulary = model.trained.vocabulary
    drawn = [sample for group in groups for sample in group.drawn]
    self.texts = [Text(i, s, vocabulary) for i, s in enumerate(drawn)]

  async def begin(self) -> None:
    """Starts it; all that can be refused has been by the end.

    Raises:
      ApiError: any.
    """
    request = self._wanted.request
    if request.echo and request.logprobs is not None:
      await self._score_prompts()
    if self._wanted.echo_only:
      for text in self.texts:
        text.sample.finish_reason = 'length'
      self._claim.release()
      return
    if request.beams:
      await self._search()
      self._claim.release()
      return
    self._job = Job(
      [
        EngineRequest(
          one.ids,
          one.request.max_chars,
          one.settings,
          one.request.seed,
          samples=self.each,
          first_sample=i * self.each,
          num_top=one.request.logprobs or 0,
          slide=True,
        )
        for i, one in enumerate(self._prepared)
      ]
    )
    self._service._running.submit(self._job)

  async def news(self) -> AsyncIterator[list[Text]]:
    """The texts that each dispatch has added to, until all are finished.

    Raises:
      ApiError: it ended before.
    """
    unfinished = sum(not t.sample.finish_reason for t in self.texts)
    if self._job is None:
      yield self.texts
      return
    while unfinished:
      event = await self._job.events.get()
      if isinstance(event, ApiError):
        raise event
      grown = {}
      for number, piece in event:
        text = answers.add(self.texts, number, self.each, piece)
        self._claim.wrote(len(piece.ids))
        self._observe(text, piece)
        grown[text.index] = text
        if piece.finish_reason:
          unfinished -= 1
          self._claim.finished(1)
      yield list(grown.values())
    self._claim.release()

  def choices(self) -> list[dict[str, Any]]:
    """All that are given in the end, best ones chosen."""
    given = []
    for group in self._answers:
      kept = group.samples()
      given += [t for s in kept for t in self.texts if t.sample is s]
    return [
      dataclasses.replace(t, index=i).whole() for i, t in enumerate(given)
    ]

  def usage(self) -> dict[str, int]:
    """Symbols so far, those of texts that were not kept too."""
    return answers.usage(
      sum(len(one.ids) for one in self._prepared),
      sum(len(text.sample.ids) for text in self.texts),
    )

  def close(self, reason: str) -> None:
    """Ends it where it is, if it is not finished."""
    if self._job is not None and any(
      not text.sample.finish_reason for text in self.texts
    ):
      self._service._running.cancel(self._job)
      self._service.metrics.cancellations.labels(reason).inc()
    self._claim.release()

  def _observe(self, text: Text, piece: Any) -> None:
    if not piece.text:
      return
    now, metrics = time.monotonic(), self._service.metrics
    if not self._seen:
      metrics.first.observe(now - self._begin)
    last = self._seen.get(text.index)
    if last is not None:
      metrics.each.observe((now - last) / len(piece.text))
    self._seen[text.index] = now

  async def _score_prompts(self) -> None:
    """The log-probabilities of the prompts, as `craft score` has them."""
    trained = self._model.trained
    number = self._wanted.request.logprobs or 0
    asked = [one for one in self._prepared if len(one.ids) > 1]
    ids = [one.ids for one in asked]
    num_top = top_bucket(number, trained.vocabulary.size)
    scored = await self._service.on_side(
      lambda: score.texts_scores(
        trained.model, trained.params, ids, num_top=num_top
      )
    )
    for group in self._answers:
      if not any(group.prepared is one for one in asked):
        continue
      one = scored[[p is group.prepared for p in asked].index(True)]
      pairs = zip(one.top_ids.tolist(), one.top.tolist(), strict=True)
      top = [list(zip(*pair, strict=True))[:number] for pair in pairs]
      for sample in group.drawn:
        sample.prompt_logprobs = (-one.nats).tolist()
        sample.prompt_top = top

  async def _search(self) -> None:
    """The best texts of beam searches."""
    trained, params = self._model.trained, self._model.params
    found = Answers(trained, self._prepared, params)
    await self._service.on_side(lambda: list(found))
    self._answers = found.answers
    vocabulary = trained.vocabulary
    drawn = [sample for group in found.answers for sample in group.drawn]
    self.texts = [Text(i, s, vocabulary) for i, s in enumerate(drawn)]
