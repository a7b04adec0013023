"""Many prompts in, their completions out in the same order."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.engine.device import decoding_params
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request as Submitted
from craft_jax.inference.engine.resident_constraints import Capacity
from craft_jax.inference.engine.scheduler import Full
from craft_jax.inference.load import Trained
from craft_jax.inference.sampling.beam_search import beam_search
from craft_jax.inference.sampling.constraint_tables import CONSTRAINT_MEMORY
from craft_jax.inference.sampling.generate import check_request
from craft_jax.inference.sampling.output import Piece, decoder_after
from craft_jax.inference.sampling.prompt import encode_prompt
from craft_jax.inference.sampling.request import Request, field_name
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.protocol import Model
from craft_jax.types import Params

SLOTS = 64
_AHEAD = 4  # rows under way or waiting for an earlier one, per slot
# Options that mean something else here than in `craft sample`, or nothing.
NOT_OFFERED = ('prompt', 'num_samples', 'best_of', 'logprobs', 'echo')


class Completion(NamedTuple):
  """A completion of a prompt.

  Attributes:
    text: the completion.
    logprob: logarithm (nats) of the probability of its tokens, the end
      included where it has ended by itself.
    finish_reason: 'stop' if it ended, 'length' if there was no more room.
    num_tokens: tokens written, the end included.
  """

  text: str
  logprob: float
  finish_reason: str
  num_tokens: int


class Row(NamedTuple):
  """A prompt that is sure to be taken.

  Attributes:
    number: index of the row; draws of a row depend on the seed and on this.
    ids: of the prompt, as the model reads it.
    max_chars: characters of a completion, at most.
    settings: how its tokens are chosen.
  """

  number: int
  ids: np.ndarray
  max_chars: int
  settings: SampleSettings


def request_of(
  data_format: str, context: int, options: Mapping[str, Any]
) -> Request:
  """The options of `craft predict`, with its own defaults.

  Decoding is greedy. A completion of a model of pairs ends by itself, or with
  the context. A text goes on to the end of the line or of the document, at
  most 400 characters; beam search looks for no stop texts, so there the line
  does not end it.

  Args:
    data_format: `data.format` of the run.
    context: of the model.
    options: by the names of `Request`, and `n_best`: that many completions of
      each prompt, by as many beams at least.

  Raises:
    UserError: an option is unknown, out of range or not offered here.
  """
  given = dict(options)
  n_best = given.pop('n_best', 0)
  if n_best < 0:
    raise UserError(f'n_best={n_best} must be at least 0 (0 is no list)')
  for name in given:
    if field_name(name) in NOT_OFFERED:
      raise UserError(f'predict does not take {name}; leave it out')
  beams = max(given.get('beams', 0), n_best)
  given |= {'beams': beams, 'num_samples': max(n_best, 1)}
  usual: dict[str, Any] = {'temperature': 0.0}
  if data_format == 'pairs':
    usual['max_chars'] = context
  elif not beams:
    usual['stop'] = ('\n',)
  return Request().changed(usual | given)


class Predictor:
  """Completes prompts of a model with the same options for all of them.

  A completion depends on its prompt, the options and the number of its row,
  not on the other rows.
  """

  def __init__(
    self,
    model: Model,
    params: Params,
    vocabulary: Vocabulary,
    request: Request,
    *,
    documents: bool,
    data_format: str,
    slots: int = SLOTS,
  ):
    """Takes a model and options; allocates nothing yet.

    Args:
      model: the model.
      params: its parameters.
      vocabulary: its tokens.
      request: options of all completions; the prompt is ignored. With `beams`
        a row has up to `num_samples` completions, else one.
      documents: whether the model was trained on several documents.
      data_format: `data.format` of the run.
      slots: completions written at once.

    Raises:
      UserError: an option that the vocabulary cannot satisfy.
    """
    self._model, self._vocabulary = model, vocabulary
    self._params = decoding_params(model, params)
    self._request, self._slots = request, slots
    self._documents, self._format = documents, data_format
    self._capacity = Capacity(CONSTRAINT_MEMORY, vocabulary)
    self._settings = functools.lru_cache(256)(self._settings_of)
    self._settings(None)

  def _settings_of(self, regex: str | None) -> SampleSettings:
    request = self._request
    if regex is not None:
      request = request.changed({'regex': regex})
    settings = request.settings(self._vocabulary, self._documents)
    check_request(settings, request.seed, request.max_chars)
    self._capacity.check(settings.constraint)
    return settings

  def prepare(self, number: int, prompt: str, regex: str | None = None) -> Row:
    """A row, after all that can be wrong with it was checked.

    Args:
      number: index of the row.
      prompt: its prompt.
      regex: a pattern that the completion of this row matches as a whole,
        instead of that of the options.

    Raises:
      UserError: a character outside the vocabulary, a prompt that leaves no
        room in the context, or a pattern that cannot be met.
    """
    settings = self._settings(regex)
    ids = encode_prompt(self._vocabulary, prompt, self._documents, self._format)
    context = self._model.context
    if len(ids) >= context:
      raise UserError(
        f'the prompt takes {len(ids)} of the {context} tokens of the context '
        'and leaves no room for a completion; shorten it, or train with a '
        'longer model.context'
      )
    most, room = self._request.max_chars, context + 1 - len(ids)
    if self._format == 'pairs' or self._request.beams:
      most = min(most, room)
    check_request(settings, self._request.seed, most)
    return Row(number, ids, most, settings)

  def completions(self, rows: Iterable[Row]) -> Iterator[list[Completion]]:
    """Completes rows, and yields the completions of each in their order.

    At most a few hundred rows are held at a time.
    """
    if self._request.beams:
      yield from map(self._search, rows)
    else:
      for completion in self._decode(iter(rows)):
        yield [completion]

  def _search(self, row: Row) -> list[Completion]:
    """The best completions of a row by beam search."""
    found = beam_search(
      self._model, self._params, self._vocabulary, row.ids,
      self._request.beams, row.max_chars, self._request.length_penalty,
      row.settings,
    )  # fmt: skip
    return [
      Completion(
        decoder_after(self._vocabulary, row.ids, row.settings).feed(text.ids),
        text.logprob,
        text.finish_reason,
        len(text.ids) + (text.finish_reason == 'stop'),
      )
      for text in found[: self._request.num_samples]
    ]

  def _decode(self, rows: Iterator[Row]) -> Iterator[Completion]:
    """Completes rows by the engine, many at once, and gives them in order."""
    # No drafts: with them a text depends on its neighbours by near-ties.
    engine = Engine(
      self._model, self._params, self._vocabulary, self._slots,
      prefix_bytes=0, drafts=None,
    )  # fmt: skip
    handles: dict[int, int] = {}  # index of a row by its handle
    pieces: dict[int, list[Piece]] = {}  # by index, until it is yielded
    begun = given = 0
    row = next(rows, None)
    while row is not None or engine.busy:
      while row is not None and begun - given < _AHEAD * self._slots:
        try:
          handle = engine.submit(self._submitted(row))
        except Full:
          break
        handles[handle], pieces[begun] = begun, []
        begun += 1
        row = next(rows, None)
      for handle, piece in engine.step():
        pieces[handles[handle]].append(piece)
        if piece.finish_reason:
          del handles[handle]
      while (
        given in pieces
        and pieces[given][-1:]
        and (pieces[given][-1].finish_reason)
      ):
        yield _completion(pieces.pop(given))
        given += 1

  def _submitted(self, row: Row) -> Submitted:
    return Submitted(
      row.ids, row.max_chars, row.settings, self._request.seed,
      first_sample=row.number, slide=self._format != 'pairs',
    )  # fmt: skip


def predictor_of(
  trained: Trained,
  options: Mapping[str, Any],
  num_rows: int,
  params: Params | None = None,
) -> Predictor:
  """A predictor of a trained model.

  Args:
    trained: the model.
    options: see `request_of`.
    num_rows: rows that there will be; few need fewer slots.
    params: its `decoding_params`, where they are at hand.

  Raises:
    UserError: an option is invalid.
  """
  data_format = trained.cfg.data.format
  return Predictor(
    trained.model,
    params or trained.params,
    trained.vocabulary,
    request_of(data_format, trained.model.context, options),
    documents=trained.meta.documents,
    data_format=data_format,
    slots=slots_for(num_rows),
  )


def _completion(pieces: list[Piece]) -> Completion:
  """The completion of the pieces of a row."""
  logprobs = [logprob for piece in pieces for logprob in piece.logprobs]
  if end := pieces[-1].end:
    logprobs.append(end[1])
  return Completion(
    ''.join(piece.text for piece in pieces),
    float(sum(logprobs)),
    pieces[-1].finish_reason,
    len(logprobs),
  )


def slots_for(num_rows: int) -> int:
  """Slots for a number of rows: no more than they fill, powers of two."""
  return min(SLOTS, 1 << max(num_rows - 1, 0).bit_length())
