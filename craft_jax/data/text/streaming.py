"""Ids to text while they arrive, without cutting a character in two."""

import codecs
from typing import Any

from craft_jax.data.text.vocabulary import Vocabulary


class StreamDecoder:
  """Decodes ids piece by piece.

  `feed` holds back the bytes of a character that is not complete yet (at most
  3) and gives U+FFFD only for bytes that no later byte can mend. Whatever the
  pieces, all answers joined are `vocabulary.decode` of all ids.
  """

  def __init__(self, vocabulary: Vocabulary):
    self._vocabulary = vocabulary
    self._utf8 = codecs.getincrementaldecoder('utf-8')('replace')

  def feed(self, ids: Any) -> str:
    """The text that is certain after `ids`; raises as `Vocabulary.decode`."""
    if self._vocabulary.kind == 'char':
      return self._vocabulary.decode(ids)
    return self._utf8.decode(self._vocabulary.decode_bytes(ids))

  @property
  def pending(self) -> bytes:
    """The bytes of a character that is not complete yet."""
    return self._utf8.getstate()[0]

  def flush(self) -> str:
    """U+FFFD if a character was left incomplete, else ''; starts afresh."""
    return self._utf8.decode(b'', final=True)
