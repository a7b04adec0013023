"""A request for completions, from what was asked to what is given."""

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from craft_jax.inference.engine.requests import Request as EngineRequest
from craft_jax.inference.load import Trained
from craft_jax.inference.sampling.answers import (
  Answer,
  Prepared,
  beam_steps,
  echo_steps,
)
from craft_jax.inference.score import num_reads
from craft_jax.serve import convert, responses
from craft_jax.serve.admission import Claim, Work
from craft_jax.serve.errors import ApiError
from craft_jax.serve.responses import Text
from craft_jax.serve.schemas import CompletionBody, ValidateBody
from craft_jax.serve.service import MOST_READS, Model, Service, Steps
from craft_jax.serve.worker import Job

T = TypeVar('T')


async def take(
  service: Service,
  body: CompletionBody,
  head: Callable[[str], responses.Head] = responses.Head,
) -> 'Writing':
  """Takes a request for completions, or refuses it.

  Args:
    service: that answers.
    body: what is asked.
    head: makes that of an answer, of the name of the model.

  Raises:
    ApiError: any.
  """
  convert.check_model(body.model, service.name)
  model = service.model
  trained = model.trained
  context = trained.cfg.model.context
  wanted = await service.aside(
    body.size, convert.read, body, service.limits, context
  )
  prepared = await _prepared(service, trained, wanted, body.size)
  for one in prepared:
    if len(one.ids) > service.limits.max_prompt:
      raise ApiError(
        400,
        f'a prompt has {len(one.ids)} tokens, more than the '
        f'{service.limits.max_prompt} of this server',
        param='prompt',
      )
  claim = service.admission.enter(_work(service, wanted, prepared))
  service.metrics.prompt_tokens.inc(sum(len(one.ids) for one in prepared))
  return Writing(service, model, wanted, prepared, claim, head(service.name))


def _work(
  service: Service, wanted: convert.Wanted, prepared: list[Prepared]
) -> Work:
  """All that a request for completions has the device do."""
  request, number = wanted.request, len(prepared)
  context = service.model.trained.cfg.model.context
  lengths = [len(one.ids) for one in prepared]
  read = scored = texts = 0
  if not wanted.echo_only:
    read = sum(min(length, context) for length in lengths)
    texts = 0 if request.beams else number * request.num_drawn
  if request.echo and request.logprobs is not None:
    scored = sum(num_reads(n, context) for n in lengths if n > 1)
  constraint = prepared[0].settings.constraint
  return Work(
    prompts=read,
    texts=texts,
    chars=request.max_chars,
    beams=number * request.beams,
    scored=scored,
    constraint=constraint,
    room=service.capacity.size(constraint) / service.capacity.most,
  )


async def _prepared(
  service: Service, trained: Trained, wanted: convert.Wanted, size: int
) -> list[Prepared]:
  """`Wanted.prepare` of a body of `size` bytes, aside if it may take long."""
  if wanted.has_constraint:
    return await service.compiler.run(wanted.prepare, trained, service.capacity)
  return await service.aside(size, wanted.prepare, trained, service.capacity)


async def validate(service: Service, body: ValidateBody) -> dict[str, Any]:
  """Whether a constraint could be kept: compiled as that of a completion.

  Returns:
    `valid`, and what is wrong: a `message` and the `param` that it is about.

  Raises:
    ApiError: for what is no answer to that: 404, 429.
  """
  convert.check_model(body.model, service.name)
  most = body.max_tokens or service.limits.max_tokens
  asked = CompletionBody(**dict(body) | {'max_tokens': most})
  model = service.model.trained
  try:
    context = model.cfg.model.context
    wanted = await service.aside(
      body.size, convert.read, asked, service.limits, context
    )
    await _prepared(service, model, wanted, body.size)
  except ApiError as e:
    if e.status != 400:
      raise
    return {'valid': False, 'message': e.message, 'param': e.param}
  return {'valid': True, 'message': None, 'param': None}


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
    wanted: convert.Wanted,
    prepared: list[Prepared],
    claim: Claim,
    head: responses.Head,
  ):
    self._service, self._model = service, model
    self._wanted, self._prepared, self._claim = wanted, prepared, claim
    self._job: Job | None = None
    self._begin = time.monotonic()
    self._seen: dict[int, float] = {}  # when a text last grew
    self.each = wanted.request.num_drawn
    self.head = head
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
      await self._service.on_side(
        echo_steps(self._model.trained, self._answers, MOST_READS),
        self._service.admission.scores,
        self._claim.advanced,
      )
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
    self._service.running.submit(self._job)

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
        text = responses.add(self.texts, number, self.each, piece)
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

  def whole(self) -> dict[str, Any]:
    """The object of the answer, when it is finished."""
    return self.head.whole(self.choices(), usage=self.usage())

  async def aside(
    self, texts: Sequence[Text], function: Callable[..., T], *args: Any
  ) -> T:
    """Makes of texts what is sent of them, in a thread if it may be much."""
    size = sum(text.unsent for text in texts)
    return await self._service.aside(size, function, *args)

  def usage(self) -> dict[str, int]:
    """Tokens so far, those of texts that were not kept too."""
    return responses.usage(
      sum(len(one.ids) for one in self._prepared),
      sum(len(text.sample.ids) for text in self.texts),
    )

  def close(self, reason: str) -> None:
    """Ends it where it is, if it is not finished."""
    if self._job is not None and any(
      not text.sample.finish_reason for text in self.texts
    ):
      self._service.running.cancel(self._job)
      self._service.metrics.cancellations.labels(reason).inc()
    self._claim.release()

  def _observe(self, text: Text, piece: Any) -> None:
    if not piece.text:
      return
    now, metrics = time.monotonic(), self._service.metrics
    metrics.characters.inc(len(piece.text))
    if not self._seen:
      metrics.first.observe(now - self._begin)
    last = self._seen.get(text.index)
    if last is not None:
      metrics.each.observe((now - last) / len(piece.text))
    self._seen[text.index] = now

  async def _search(self) -> None:
    """The best texts of beam searches."""
    trained, params = self._model.trained, self._model.params

    def steps() -> Steps[list[Answer]]:
      found = []
      for one in self._prepared:
        answer, _ = yield from beam_steps(trained, params, one)
        found.append(answer)
      return found

    # Each holds a cache for all of its beams.
    found = await self._service.on_side(
      steps(),
      self._service.admission.beams,
      self._claim.advanced,
      self._service.searching,
    )
    self._answers = found
    vocabulary = trained.vocabulary
    drawn = [sample for group in found for sample in group.drawn]
    self.texts = [Text(i, s, vocabulary) for i, s in enumerate(drawn)]
