"""Incremental decoding of tokens to text that never splits a character."""

import codecs
from typing import Any

from craft_jax.data.text.vocabulary import Vocabulary


class StreamDecoder:
  """Decodes token ids incrementally.

  `feed` holds back the bytes of an incomplete character (at most 3) and returns
  U+FFFD only for bytes that no later byte can complete. All returned strings
  joined equal `vocabulary.decode` of all ids.
  """

  def __init__(self, vocabulary: Vocabulary):
    self._vocabulary = vocabulary
    self._utf8 = codecs.getincrementaldecoder('utf-8')('replace')

  def feed(self, ids: Any) -> str:
    """Returns the text that `ids` complete; ValueError if they are invalid."""
    if self._vocabulary.kind == 'char':
      return self._vocabulary.decode(ids)
    return self._utf8.decode(self._vocabulary.decode_bytes(ids))

  @property
  def pending(self) -> bytes:
    """The bytes of an incomplete character."""
    return self._utf8.getstate()[0]

  def flush(self) -> str:
    """Returns U+FFFD for an incomplete character, else ''; resets the state."""
    return self._utf8.decode(b'', final=True)
