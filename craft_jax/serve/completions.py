"""A request for completions, from its body to its texts."""

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from craft_jax.inference.engine.requests import Request as EngineRequest
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
  service: Service, body: CompletionBody, head: responses.Head | None = None
) -> 'Writing':
  """Admits a request for completions, or refuses it.

  Args:
    service: answers it.
    body: the request.
    head: of the answer, if it is not that of completions.

  Raises:
    ApiError: any.
  """
  model = service.model
  wanted, prepared = await _prepared(service, body)
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
  head = head or responses.Head(service.name)
  return Writing(service, model, wanted, prepared, claim, head)


async def _prepared(
  service: Service, body: CompletionBody
) -> tuple[convert.Wanted, list[Prepared]]:
  """Checks a request and compiles its constraint."""
  trained = service.model.trained
  wanted = await service.aside(
    body.size, convert.read, body, service.limits, trained.cfg.model.context
  )
  args = wanted.prepare, trained, service.capacity
  if wanted.constraints:
    return wanted, await service.compiler.run(*args)
  return wanted, await service.aside(body.size, *args)


def _work(
  service: Service, wanted: convert.Wanted, prepared: list[Prepared]
) -> Work:
  """Everything that a request for completions has the device do."""
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


async def validate(service: Service, body: ValidateBody) -> dict[str, Any]:
  """Checks a constraint as a completion with it would.

  Returns:
    `valid`, and what is wrong: a `message` and the `param` that it is about.

  Raises:
    ApiError: 429, too many constraints wait to be compiled.
  """
  most = body.max_tokens or service.limits.max_tokens
  asked = CompletionBody(**dict(body) | {'max_tokens': most})
  asked._size = body.size
  try:
    await _prepared(service, asked)
  except ApiError as e:
    if e.status != 400:
      raise
    return {'valid': False, 'message': e.message, 'param': e.param}
  return {'valid': True, 'message': None, 'param': None}


class Writing:
  """An admitted request while its texts are generated.

  Attributes:
    texts: all that are drawn, in the order of the prompts.
    head: what the objects of its answer have in common.
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
    self._each = wanted.request.num_drawn
    self.head = head
    self._set_answers([Answer(one, self._each) for one in prepared])

  def _set_answers(self, answers: list[Answer]) -> None:
    self._answers = answers
    vocabulary = self._model.trained.vocabulary
    drawn = [sample for answer in answers for sample in answer.drawn]
    self.texts = [Text(i, s, vocabulary) for i, s in enumerate(drawn)]

  async def begin(self) -> None:
    """Starts it; whatever can be refused has been by the end.

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
    elif request.beams:
      # Each search holds a cache for all of its beams.
      found = await self._service.on_side(
        self._search(),
        self._service.admission.beams,
        self._claim.advanced,
        self._service.searching,
      )
      self._set_answers(found)
      self._claim.release()
    else:
      self._job = Job(
        [
          EngineRequest(
            one.ids,
            one.request.max_chars,
            one.settings,
            one.request.seed,
            samples=self._each,
            first_sample=i * self._each,
            num_top=one.request.logprobs or 0,
            slide=True,
          )
          for i, one in enumerate(self._prepared)
        ]
      )
      self._service.running.submit(self._job)

  def _search(self) -> Steps[list[Answer]]:
    """Beam searches, one after another."""
    found = []
    for one in self._prepared:
      answer, _ = yield from beam_steps(
        self._model.trained, self._model.params, one
      )
      found.append(answer)
    return found

  async def news(self) -> AsyncIterator[list[Text]]:
    """Yields the texts that each dispatch has added to, until all are finished.

    Raises:
      ApiError: it ended before.
    """
    if self._job is None:
      yield self.texts
      return
    while self._unfinished:
      event = await self._job.events.get()
      if isinstance(event, ApiError):
        raise event
      grown = {}
      for number, piece in event:
        text = self.texts[number * self._each + piece.row]
        text.sample.add(piece, text.vocabulary)
        text.end = piece.end
        self._claim.wrote(len(piece.ids))
        self._observe(text, piece)
        grown[text.index] = text
        if piece.finish_reason:
          self._claim.finished(1)
      yield list(grown.values())
    self._claim.release()

  @property
  def _unfinished(self) -> bool:
    return any(not text.sample.finish_reason for text in self.texts)

  def choices(self) -> list[dict[str, Any]]:
    """The choices of the answer, the best ones where more were drawn."""
    given = []
    for answer in self._answers:
      kept = answer.samples()
      given += [t for s in kept for t in self.texts if t.sample is s]
    return [
      dataclasses.replace(t, index=i).whole() for i, t in enumerate(given)
    ]

  def whole(self) -> dict[str, Any]:
    """The answer, once all texts are finished."""
    return self.head.object(self.choices(), False, usage=self.usage())

  async def aside(
    self, texts: Sequence[Text], function: Callable[..., T], *args: Any
  ) -> T:
    """Encodes what is to be sent of texts, in a thread if it may be much."""
    size = sum(text.unsent for text in texts)
    return await self._service.aside(size, function, *args)

  def usage(self) -> dict[str, int]:
    """Tokens so far, including those of texts that are not kept."""
    read = sum(len(one.ids) for one in self._prepared)
    written = sum(len(text.sample.ids) for text in self.texts)
    return {
      'prompt_tokens': read,
      'completion_tokens': written,
      'total_tokens': read + written,
    }

  def close(self, reason: str) -> None:
    """Ends it where it is, if it is not finished."""
    if self._job is not None and self._unfinished:
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
