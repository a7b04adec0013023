"""Requests in, samples out, in batches."""

import dataclasses
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import SPECIALS, Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference import score
from craft_jax.inference.engine.device import decoding_params
from craft_jax.inference.load import Trained
from craft_jax.inference.sampling.beam_search import check_search, search_steps
from craft_jax.inference.sampling.generate import (
  Piece,
  check_request,
  generate,
  top_bucket,
)
from craft_jax.inference.sampling.output import decoder_after, most_likely
from craft_jax.inference.sampling.prompt import encode_prompt, show_prompt
from craft_jax.inference.sampling.request import Request
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import FORCED, Drafts
from craft_jax.types import Params

# Rows of a batch of several requests; one request is never cut.
_MOST_ROWS = 64


class Prepared(NamedTuple):
  """A request that is sure to be taken.

  Attributes:
    request: as it was given.
    id: what the samples are marked with; None for nothing.
    ids: of the prompt.
    shown: the prompt as text.
    settings: for the sampler.
    continues: whether the text goes on where the prompt ends; that of a model
      of pairs is a text of its own.
  """

  request: Request
  id: Any
  ids: np.ndarray
  shown: str
  settings: SampleSettings
  continues: bool = True


def prepare(trained: Trained, request: Request, id: Any = None) -> Prepared:
  """Everything of a request that can be wrong is found here.

  Raises:
    UserError: a prompt or a constraint that the vocabulary cannot write, a
      number out of range, a beam search that does not fit the context.
  """
  vocabulary, documents = trained.vocabulary, trained.meta.documents
  settings = request.settings(vocabulary, documents)
  check_request(settings, request.seed, request.max_chars)
  most = vocabulary.size
  if request.logprobs is not None and request.logprobs > most:
    raise UserError(
      f'logprobs={request.logprobs} must be at most the {most} tokens of the '
      'model'
    )
  data_format = trained.cfg.data.format
  ids = encode_prompt(vocabulary, request.prompt, documents, data_format)
  if request.beams:
    check_search(
      vocabulary,
      ids,
      request.beams,
      request.max_chars,
      request.length_penalty,
      trained.cfg.model.context,
      settings,
    )
  shown = show_prompt(vocabulary, request.prompt)
  continues = data_format == 'text'
  return Prepared(request, id, ids, shown, settings, continues)


@dataclasses.dataclass
class Sample:
  """A text that is written or being written.

  Attributes:
    prepared: its request.
    number: index among those that were drawn.
    text: so far, without the prompt.
    finish_reason: see `generate.Piece`; '' while it goes on.
    ids: the tokens written; of a finished text those that it consists of.
    logprobs: of these, see `generate.Piece`.
    top: likewise, as many as the request asks for.
    prompt_logprobs: of the tokens of the prompt but for the first, where an
      echo of them is asked for.
    prompt_top: likewise, as `top`.
  """

  prepared: Prepared
  number: int
  text: str = ''
  finish_reason: str = ''
  ids: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[float] = dataclasses.field(default_factory=list)
  top: list[Any] = dataclasses.field(default_factory=list)
  prompt_logprobs: Sequence[float] = ()
  prompt_top: Sequence[Any] = ()

  def add(self, piece: Piece, vocabulary: Vocabulary) -> None:
    """Takes what a dispatch has added."""
    self.text += piece.text
    self.finish_reason = piece.finish_reason
    self.ids += piece.ids
    self.logprobs += piece.logprobs
    self.top += [pairs[: self.prepared.request.logprobs] for pairs in piece.top]
    if self.finish_reason:
      decoder = decoder_after(
        vocabulary, self.prepared.ids, self.prepared.settings
      )
      number = _num_tokens(vocabulary, decoder, self.ids, self.text)
      for tokens in (self.ids, self.logprobs, self.top):
        del tokens[number:]

  @property
  def full_text(self) -> str:
    """The text, after the prompt where the request has `echo`."""
    return (self.prepared.shown if self.prepared.request.echo else '') + (
      self.text
    )

  @property
  def mean_logprob(self) -> float:
    """Per token; minus infinity for a text without any."""
    if not self.logprobs:
      return -math.inf
    return math.fsum(self.logprobs) / len(self.logprobs)

  def to_json(self, vocabulary: Vocabulary) -> dict[str, Any]:
    """The object that `craft sample` prints."""
    request = self.prepared.request
    found: dict[str, Any] = {}
    if self.prepared.id is not None:
      found['id'] = self.prepared.id
    found |= {
      'prompt': self.prepared.shown,
      'text': self.full_text,
      'finish_reason': self.finish_reason,
      'seed': request.seed,
      'sample': self.number,
    }
    if request.best_of:
      mean = self.mean_logprob
      found['mean_logprob'] = mean if math.isfinite(mean) else None
    if request.logprobs is not None:
      found['tokens'] = self._tokens(vocabulary)
    return found

  def _tokens(self, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Each token with its figures; null for the first one of an echo."""
    ids, top = self.ids, self.top
    logprobs: list[float | None] = [*self.logprobs]
    if self.prepared.request.echo and self.prepared.request.prompt:
      ids = self.prepared.ids.tolist() + ids
      logprobs = [None, *self.prompt_logprobs, *logprobs]
      top = [None, *self.prompt_top, *top]
    found = []
    for i, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
      shown = show_token(vocabulary, token) | {'logprob': logprob}
      if self.prepared.request.logprobs:
        shown['top'] = top[i] and [
          show_token(vocabulary, other) | {'logprob': its_logprob}
          for other, its_logprob in top[i]
        ]
      found.append(shown)
    return found


def show_token(vocabulary: Vocabulary, token: int) -> dict[str, Any]:
  """A token for JSON: `char`, `byte` (a number) or `special`."""
  if token >= vocabulary.num_text_tokens:
    return {'special': SPECIALS[token - vocabulary.num_text_tokens]}
  if vocabulary.kind == 'byte':
    return {'byte': token}
  return {'char': vocabulary.chars[token]}


def _num_tokens(
  vocabulary: Vocabulary, decoder: StreamDecoder, ids: list[int], text: str
) -> int:
  """How many of the tokens the text needs; the others came after its end."""
  if vocabulary.kind == 'char':
    return min(len(text), len(ids))
  length = 0
  for i, token in enumerate(ids):
    if length >= len(text):
      return i
    length += len(decoder.feed([token]))
  return len(ids)


class Answer:
  """The samples of one request."""

  def __init__(self, prepared: Prepared, number: int):
    """Begins `number` samples."""
    self.prepared = prepared
    self.drawn = [Sample(prepared, i) for i in range(number)]

  def samples(self) -> list[Sample]:
    """Those to give, as far as they are certain."""
    request = self.prepared.request
    if not request.best_of:
      return self.drawn
    if not self.is_certain:
      return []
    # Stable: among equals the one that was drawn first.
    best = sorted(self.drawn, key=lambda sample: -sample.mean_logprob)
    return best[: request.num_samples]

  @property
  def is_certain(self) -> bool:
    """Whether `samples` has all it will ever have, finished or not."""
    return not self.prepared.request.best_of or all(
      sample.finish_reason for sample in self.drawn
    )


def add_echoes(trained: Trained, answers: Sequence[Answer]) -> None:
  """Scores the prompts whose log-probabilities are asked for."""
  score.finished(echo_steps(trained, answers))


def echo_steps(
  trained: Trained,
  answers: Sequence[Answer],
  most_reads: int = score.MOST_READS,
) -> Generator[int, None, None]:
  """`add_echoes` a window at a time; yields the tokens that each has read.

  `most_reads` is as of `score.score_pieces`.
  """
  asked = [
    answer
    for answer in answers
    if answer.prepared.request.echo
    and answer.prepared.request.logprobs is not None
    and len(answer.prepared.ids) > 1
  ]
  most = max((a.prepared.request.logprobs or 0 for a in asked), default=0)
  scored = yield from score.texts_steps(
    trained.model,
    trained.params,
    [answer.prepared.ids for answer in asked],
    num_top=top_bucket(most, trained.vocabulary.size),
    most_reads=most_reads,
  )
  for answer, one in zip(asked, scored, strict=True):
    number = answer.prepared.request.logprobs or 0
    top_ids, logs = one.top_ids[:, :number], one.top[:, :number]
    top = most_likely(top_ids.tolist(), logs.tolist(), number)
    yield 0  # a long list was made
    for sample in answer.drawn:
      sample.prompt_logprobs = (-one.nats).tolist()
      sample.prompt_top = top


def beam_steps(
  trained: Trained, params: Params, one: Prepared
) -> Generator[int, None, tuple[Answer, list[Piece]]]:
  """The best texts of a beam search, fewer if there are no more.

  Args:
    trained: the model.
    params: its `decoding_params`.
    one: the request.

  Yields:
    The tokens that each dispatch has written.

  Returns:
    The answer, and each of its texts as a piece.
  """
  request, vocabulary = one.request, trained.vocabulary
  found = yield from search_steps(
    trained.model,
    params,
    vocabulary,
    one.ids,
    request.beams,
    request.max_chars,
    request.length_penalty,
    one.settings,
  )
  pieces = [
    Piece(
      i,
      decoder_after(vocabulary, one.ids, one.settings).feed(text.ids),
      text.finish_reason,
      text.ids,
    )
    for i, text in enumerate(found[: request.num_samples])
  ]
  answer = Answer(one, len(pieces))
  for sample, piece in zip(answer.drawn, pieces, strict=True):
    sample.add(piece, vocabulary)
  return answer, pieces


class Answers:
  """Requests being answered, in their order.

  Attributes:
    answers: of those that have begun.
  """

  def __init__(
    self,
    trained: Trained,
    wanted: Sequence[Prepared],
    params: Params | None = None,
    drafts: Drafts = FORCED,
  ):
    """Nothing is written before the iteration.

    Args:
      trained: the model.
      wanted: the requests.
      params: its `decoding_params`, where they are at hand.
      drafts: which drafts are read ahead.
    """
    self._trained, self._wanted, self._drafts = trained, wanted, drafts
    self._params = params or decoding_params(trained.model, trained.params)
    self.answers: list[Answer] = []

  def __iter__(self) -> Iterator[list[Piece]]:
    """The pieces of each dispatch; `samples` has them by then."""
    for batch in _batches(self._wanted):
      if batch[0].request.beams:
        yield self._search(batch[0])
      else:
        yield from self._draw(batch)

  @property
  def num_samples(self) -> int:
    """Those that will be given, of all requests."""
    return sum(one.request.num_samples for one in self._wanted)

  def samples(self) -> list[Sample]:
    """Those that are certain to be given, in order; the last may go on."""
    found = []
    for answer in self.answers:
      if not answer.is_certain:
        break
      found += answer.samples()
    return found

  def _draw(self, batch: Sequence[Prepared]) -> Iterator[list[Piece]]:
    vocabulary = self._trained.vocabulary
    answers = [Answer(one, one.request.num_drawn) for one in batch]
    rows = [sample for answer in answers for sample in answer.drawn]
    add_echoes(self._trained, answers)
    self.answers += answers
    requests = [row.prepared.request for row in rows]
    for pieces in generate(
      self._trained.model,
      self._params,
      vocabulary,
      [row.prepared.ids for row in rows],
      [row.prepared.settings for row in rows],
      [request.seed for request in requests],
      [request.max_chars for request in requests],
      first_row=[row.number for row in rows],
      num_top=max(request.logprobs or 0 for request in requests),
      drafts=self._drafts,
    ):
      for piece in pieces:
        rows[piece.row].add(piece, vocabulary)
      yield pieces

  def _search(self, one: Prepared) -> list[Piece]:
    answer, pieces = score.finished(
      beam_steps(self._trained, self._params, one)
    )
    self.answers.append(answer)
    return pieces


def _batches(wanted: Sequence[Prepared]) -> Iterator[list[Prepared]]:
  """Neighbours that are written together."""
  batch: list[Prepared] = []
  num_rows = 0
  for one in wanted:
    number = one.request.num_drawn
    alone = bool(one.request.beams)
    if batch and (
      alone or batch[0].request.beams or num_rows + number > _MOST_ROWS
    ):
      yield batch
      batch, num_rows = [], 0
    batch.append(one)
    num_rows += number
  if batch:
    yield batch
