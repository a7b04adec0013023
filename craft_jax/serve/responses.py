"""The objects that are sent: completions, whole and in pieces."""

import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import SPECIALS, Vocabulary
from craft_jax.inference.sampling.answers import Sample
from craft_jax.inference.sampling.output import Piece, decoder_after

# Values of a list that are written at once, which no other thread interrupts.
_SLICE = 2048


@dataclasses.dataclass
class Text:
  """One choice: a sample, and how much of it has been sent.

  Attributes:
    index: among the choices.
    sample: what is written.
    vocabulary: of the model.
    end: the token that ended it and its logarithm, as yet unsent.
  """

  index: int
  sample: Sample
  vocabulary: Vocabulary
  end: tuple[int, float] | None = None
  _sent_text: int = 0
  _sent_tokens: int = 0
  _offset: int = -1
  _decoder: StreamDecoder | None = None

  @property
  def unsent(self) -> int:
    """Bytes, roughly, of what `whole` or `news` would give now."""
    sample, request = self.sample, self.sample.prepared.request
    if request.logprobs is None:
      return len(sample.full_text) - self._sent_text
    tokens = len(sample.ids) - self._sent_tokens
    if request.echo and not self._sent_text:
      tokens += len(sample.prepared.ids)
    return 64 * (1 + request.logprobs) * tokens

  def whole(self) -> dict[str, Any]:
    """The choice."""
    return {
      'text': self.sample.full_text,
      'index': self.index,
      'logprobs': self._logprobs(),
      'finish_reason': self.sample.finish_reason or 'length',
    }

  def news(self) -> dict[str, Any] | None:
    """What has come since the last call, as a choice; None if nothing has."""
    text = self.sample.full_text
    reason = self.sample.finish_reason or None
    if len(text) == self._sent_text and reason is None:
      return None
    new, self._sent_text = text[self._sent_text :], len(text)
    return {
      'text': new,
      'index': self.index,
      'logprobs': self._logprobs(),
      'finish_reason': reason,
    }

  def _logprobs(self) -> dict[str, list[Any]] | None:
    """OpenAI's lists of the tokens that were not sent and now are certain."""
    if self.sample.prepared.request.logprobs is None:
      return None
    found: dict[str, list[Any]] = {
      'tokens': [],
      'token_logprobs': [],
      'top_logprobs': [],
      'text_offset': [],
    }
    for token, logprob, top in self._tokens():
      found['tokens'].append(token_name(self.vocabulary, token))
      found['token_logprobs'].append(logprob)
      found['top_logprobs'].append(top)
      found['text_offset'].append(self._place(token))
    return found

  def _place(self, token: int) -> int:
    """Where the character begins that a token is of."""
    assert self._decoder is not None
    if token >= self.vocabulary.num_text_tokens:
      return self._offset
    # It may also tell that what came before is no character.
    new = self._decoder.feed([token])
    self._offset += len(new)
    whole = new and not self._decoder.pending
    return self._offset - 1 if whole else self._offset

  def _tokens(self) -> Iterator[tuple[int, float | None, Any]]:
    """Tokens that the text sent so far shows, and their figures.

    The offset of a token is that of the character which it is a part of.
    """
    sample, request = self.sample, self.sample.prepared.request
    prompt = sample.prepared.ids
    if self._decoder is None:
      self._decoder = StreamDecoder(self.vocabulary)
      if request.echo and request.prompt:
        self._offset = 0
        yield int(prompt[0]), None, None
        figures = zip(
          prompt[1:].tolist(),
          sample.prompt_logprobs,
          sample.prompt_top,
          strict=True,
        )
        for token, logprob, top in figures:
          yield token, logprob, self._top(token, logprob, top)
      else:
        self._offset = 0 if request.echo else len(sample.prepared.shown)
      self._decoder = decoder_after(
        self.vocabulary, prompt, sample.prepared.settings
      )
    shown = len(sample.full_text)
    if not request.echo:
      shown += len(sample.prepared.shown)
    # Who scores a prompt so (lm-eval does) takes the last token for the only
    # one that was written, though a character may be several.
    scores = request.echo and request.max_chars == 1
    most = 1 if scores else len(sample.ids)
    while self._sent_tokens < min(most, len(sample.ids)):
      if self._offset >= shown and not sample.finish_reason:
        break
      i, self._sent_tokens = self._sent_tokens, self._sent_tokens + 1
      token, logprob = sample.ids[i], sample.logprobs[i]
      top = sample.top[i] if sample.top else ()
      yield token, logprob, self._top(token, logprob, top)
    if self.end is not None and not (scores and sample.ids):
      end, self.end = self.end, None
      yield *end, self._top(*end, ())

  def _top(
    self, token: int, logprob: float, top: Sequence[tuple[int, float]]
  ) -> dict[str, float]:
    """By their names the most likely tokens, and the one that was written."""
    pairs = dict(top)
    # As they were scored by another program, the last bits may differ.
    pairs[token] = logprob
    return {
      token_name(self.vocabulary, each): log for each, log in pairs.items()
    }


def token_name(vocabulary: Vocabulary, token: int) -> str:
  """The name of a token: its character, `bytes:\\xc3`, `<bos>`, `<eos>`."""
  if token >= vocabulary.num_text_tokens:
    return SPECIALS[token - vocabulary.num_text_tokens]
  if vocabulary.kind == 'byte':
    return chr(token) if token < 0x80 else f'bytes:\\x{token:02x}'
  return vocabulary.chars[token]


def add(texts: Sequence[Text], number: int, each: int, piece: Piece) -> Text:
  """Gives a piece to the text that it belongs to.

  Args:
    texts: of all prompts, `each` of one.
    number: of the prompt.
    each: texts per prompt.
    piece: its `row` is the sample's number.
  """
  text = texts[number * each + piece.row]
  text.sample.add(piece, text.vocabulary)
  text.end = piece.end
  return text


class Head:
  """What all objects of one answer have in common.

  Args:
    model: its name.
  """

  prefix = 'cmpl'

  def __init__(self, model: str):
    self._id = f'{self.prefix}-{uuid.uuid4().hex}'
    self._created, self._model = int(time.time()), model

  def whole(self, choices: list[dict], **more: Any) -> dict[str, Any]:
    """The object of an answer that is complete."""
    return self._object('text_completion', choices, more)

  def piece(self, choices: list[dict], **more: Any) -> dict[str, Any]:
    """One of a stream, with what is new."""
    return self._object('text_completion', choices, more)

  def _object(
    self, kind: str, choices: list[dict], more: dict[str, Any]
  ) -> dict[str, Any]:
    return {
      'id': self._id,
      'object': kind,
      'created': self._created,
      'model': self._model,
      'choices': choices,
      **more,
    }


def usage(prompts: int, written: int) -> dict[str, int]:
  """Tokens that were read and written."""
  return {
    'prompt_tokens': prompts,
    'completion_tokens': written,
    'total_tokens': prompts + written,
  }
