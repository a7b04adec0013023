"""The objects that are sent: completions, whole and in pieces."""

import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import SPECIALS, Vocabulary
from craft_jax.inference.sampling.answers import Sample
from craft_jax.inference.sampling.output import decoder_after


@dataclasses.dataclass
class Text:
  """One choice: a sample, and how much of it has been sent.

  Attributes:
    index: among the choices.
    sample: what is written.
    vocabulary: of the model.
    end: the token that ended it and its log-probability, while unsent.
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
    """The choice, complete."""
    sample = self.sample
    return self._choice(sample.full_text, sample.finish_reason or 'length')

  def news(self) -> dict[str, Any] | None:
    """What has come since the last call, as a choice; None if nothing has."""
    text = self.sample.full_text
    reason = self.sample.finish_reason or None
    if len(text) == self._sent_text and reason is None:
      return None
    new, self._sent_text = text[self._sent_text :], len(text)
    return self._choice(new, reason)

  def _choice(self, text: str, reason: str | None) -> dict[str, Any]:
    """A choice, with OpenAI's lists of the tokens that were not sent yet."""
    logprobs = None
    if self.sample.prepared.request.logprobs is not None:
      rows = [
        (token_name(self.vocabulary, token), logprob, top, self._place(token))
        for token, logprob, top in self._tokens()
      ]
      logprobs = {
        name: [row[i] for row in rows]
        for i, name in enumerate(
          ('tokens', 'token_logprobs', 'top_logprobs', 'text_offset')
        )
      }
    return {
      'text': text,
      'index': self.index,
      'logprobs': logprobs,
      'finish_reason': reason,
    }

  def _place(self, token: int) -> int:
    """Where the character begins that a token is a part of."""
    assert self._decoder is not None
    if token >= self.vocabulary.num_text_tokens:
      return self._offset
    # It may also show that the bytes before it are no character.
    new = self._decoder.feed([token])
    self._offset += len(new)
    whole = new and not self._decoder.pending
    return self._offset - 1 if whole else self._offset

  def _tokens(self) -> Iterator[tuple[int, float | None, Any]]:
    """Tokens of the text sent so far, their log-probabilities and the top k."""
    sample, request = self.sample, self.sample.prepared.request
    prompt = sample.prepared.ids
    if self._decoder is None:
      self._decoder = StreamDecoder(self.vocabulary)
      if request.echo and request.prompt:
        self._offset = 0
        yield int(prompt[0]), None, None
        scored = zip(
          prompt[1:].tolist(),
          sample.prompt_logprobs,
          sample.prompt_top,
          strict=True,
        )
        for token, logprob, top in scored:
          yield token, logprob, self._top(token, logprob, top)
      else:
        self._offset = 0 if request.echo else len(sample.prepared.shown)
      self._decoder = decoder_after(
        self.vocabulary, prompt, sample.prepared.settings
      )
    shown = len(sample.full_text)
    if not request.echo:
      shown += len(sample.prepared.shown)
    # Whoever scores a prompt this way (lm-eval does) takes the last token for
    # the only one that was generated, though a character may be several.
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
    """The most likely tokens and the one that was generated, by their names."""
    pairs = dict(top)
    # Another compiled program scored them: the last bits may differ.
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


class Head:
  """What all objects of one answer have in common.

  Args:
    model: its name.

  Attributes:
    prefix: of the answer's id.
    kinds: names of a whole answer and of an event in a stream.
  """

  prefix, kinds = 'cmpl', ('text_completion', 'text_completion')

  def __init__(self, model: str):
    self._id = f'{self.prefix}-{uuid.uuid4().hex}'
    self._created, self._model = int(time.time()), model

  def object(
    self, choices: list[dict], is_event: bool, **more: Any
  ) -> dict[str, Any]:
    """A whole answer, or an event with what is new."""
    return {
      'id': self._id,
      'object': self.kinds[is_event],
      'created': self._created,
      'model': self._model,
      'choices': [self.choice(choice, is_event) for choice in choices],
      **more,
    }

  def choice(self, choice: dict[str, Any], is_event: bool) -> dict[str, Any]:
    """A choice in the form of this API."""
    return choice
