"""What the host knows of a text being written, and what it gives out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from craft_jax.constrain import Automaton, valid_utf8
from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling import options
from craft_jax.inference.sampling.settings import SampleSettings

_UNLIMITED = 1 << 30  # tokens
_UTF8_TAIL = 3  # bytes an incomplete character can have


@dataclasses.dataclass(frozen=True)
class Piece:
  """What one dispatch added to one sample.

  Attributes:
    row: index of the prompt.
    text: whole characters; may be ''.
    finish_reason: '' while it goes on; 'stop' if the text has ended (the model
      ended it, a stop text was met, a constraint allows nothing more), 'length'
      if it has all the characters asked for.
    ids: tokens written, an end left out; those of a stop text and of a
      character that is not complete yet are among them.
    logprobs: logarithms of the probabilities that the model gave them, before
      anything was added, forbidden or cut.
    top: of each token the most likely ids there and the same logarithms of
      theirs, falling; as many as were asked for.
    end: the token by which the model ended the text, and its logarithm.
  """

  row: int
  text: str
  finish_reason: str
  ids: Sequence[int] = ()
  logprobs: Sequence[float] = ()
  top: Sequence[Sequence[tuple[int, float]]] = ()
  end: tuple[int, float] | None = None


@dataclasses.dataclass
class Row:
  """A text being written, as the host knows it.

  Attributes:
    window: the tokens the model may look at, the newest included; all but
      the newest are in the cache.
    decoder: holds back the bytes of an incomplete character.
    chars_left: characters still to write.
    stop: texts before which it ends.
    held: the end of the text, which may begin one of them.
    live: whether it goes on.
  """

  window: list[int]
  decoder: StreamDecoder
  chars_left: int
  stop: tuple[str, ...] = ()
  held: str = ''
  live: bool = True

  def take(
    self, row: int, ids: list[int], logprobs: list[float], ends: tuple[int, ...]
  ) -> Piece:
    """Adds the tokens of a dispatch; what is certain of the text by then."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    ended = None if end is None else (ids[end], logprobs[end])
    ids, logprobs = ids[:end], logprobs[:end]
    self.window.extend(ids)
    new = self.decoder.feed(ids)[: self.chars_left]
    self.chars_left -= len(new)
    reason = '' if end is None else 'stop'
    if not self.chars_left:
      reason, ended = 'length', None
    text = self.held + new
    stop = _first_stop(text, self.stop)
    if stop is not None:
      text, self.held, reason, ended = text[:stop], '', 'stop', None
    else:
      keep = 0 if reason else _beginning(text, self.stop)
      text, self.held = text[: len(text) - keep], text[len(text) - keep :]
    self.live = not reason
    return Piece(row, text, reason, ids, logprobs, end=ended)


def most_likely(
  ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]], number: int
) -> list[list[tuple[int, float]]]:
  """Of each token the first `number` of the most likely, as `Piece.top`."""
  pairs = zip(ids, logprobs, strict=True)
  return [list(zip(*pair, strict=True))[:number] for pair in pairs]


def _first_stop(text: str, words: tuple[str, ...]) -> int | None:
  """Where the word begins that is complete first, the longest of several.

  So the text is the one that would be found character by character.
  """
  found = [
    (at + len(word), at) for word in words if (at := text.find(word)) >= 0
  ]
  return min(found)[1] if found else None


def _beginning(text: str, words: tuple[str, ...]) -> int:
  """Characters of the longest end of `text` that begins one of the words."""
  longest = max(map(len, words), default=1) - 1
  return next(
    (
      n
      for n in range(min(longest, len(text)), 0, -1)
      if any(word.startswith(text[-n:]) for word in words)
    ),
    0,
  )


def decoder_after(
  vocabulary: Vocabulary, prompt: np.ndarray, settings: SampleSettings
) -> StreamDecoder:
  """A decoder that knows of the character that the prompt may end within.

  A constraint is of whole characters, and never completes that one; nor does
  anything after a special token.
  """
  decoder = StreamDecoder(vocabulary)
  if settings.constraint is None and vocabulary.kind == 'byte':
    tail = prompt[-_UTF8_TAIL:]
    special = np.flatnonzero(tail >= vocabulary.num_text_tokens)
    decoder.feed(tail[special[-1] + 1 :] if len(special) else tail)
  return decoder


def constraint_of(
  vocabulary: Vocabulary,
  settings: SampleSettings,
  decoder: StreamDecoder,
  most: int,
) -> tuple[Automaton | None, int, int]:
  """Of a text the automaton, the state it begins in and its tokens at most.

  A constraint is sure to be met because its tokens are counted: under bytes it
  may write fewer characters than were asked for. UTF-8 needs no such count: a
  text ends with a whole character.

  Args:
    vocabulary: the tokens.
    settings: of the text.
    decoder: after the prompt.
    most: tokens that a constraint may write.
  """
  if settings.constraint is not None:
    return settings.constraint, 0, most
  if settings.utf8 and vocabulary.kind == 'byte':
    automaton = valid_utf8(vocabulary)
    return automaton, automaton.walk(decoder.pending), _UNLIMITED
  return None, 0, _UNLIMITED


def setting_arrays(
  settings: Sequence[SampleSettings], vocabulary_size: int
) -> dict[str, Any]:
  """The settings as arrays of rows: all of `RowSettings` but the keys."""
  bias_BV = np.zeros((len(settings), vocabulary_size), np.float32)
  for bias_V, wanted in zip(bias_BV, settings, strict=True):
    for token, bias in wanted.logit_bias.items():
      bias_V[token] = bias
  return {
    'option': {
      name: np.array([getattr(wanted, name) for wanted in settings], dtype)
      for name, dtype in options.SLOTS.items()
    },
    'bias_BV': bias_BV,
    'end_B': np.array([wanted.end for wanted in settings], bool),
  }
