"""The vocabulary: text to ids and back, for bytes or characters.

Ids start with the tokens (the 256 bytes, or the characters, most frequent
first) and end with four specials: BOS, EOS, PAD, UNK. Text is never searched
for the spelling of a special: the five characters of `<bos>` are five
tokens, and only the program itself puts a special into an array.
"""

import dataclasses
import functools
import hashlib
import json
import unicodedata
from typing import Any

import numpy as np

from craft_jax.data.text import utf8
from craft_jax.errors import UserError
from craft_jax.runtime import strict_json

SPECIALS = ('<bos>', '<eos>', '<pad>', '<unk>')
MAX_SIZE = 1 << 16
KINDS = ('byte', 'char')
UNKNOWN = ('error', 'replace')


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokens and their ids.

  Attributes:
    kind: 'byte' or 'char'.
    chars: the characters in id order (kind 'char'); '' for kind 'byte'.
    unknown: what `encode` does with a character outside the vocabulary:
      'error' raises, 'replace' gives UNK.

  Raises:
    UserError: a field is impossible, such as a repeated character.
  """

  kind: str
  chars: str = ''
  unknown: str = 'error'

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise UserError(f'vocabulary kind {self.kind!r} must be byte or char')
    if self.unknown not in UNKNOWN:
      raise UserError(
        f'vocabulary unknown {self.unknown!r} must be error or replace'
      )
    if self.kind == 'byte' and self.chars:
      raise UserError('a byte vocabulary has no characters of its own')
    if self.kind == 'char' and not self.chars:
      raise UserError(
        'a char vocabulary needs at least one character: the text is empty'
      )
    if len(set(self.chars)) != len(self.chars):
      raise UserError('a char vocabulary lists a character twice')
    if self.size > MAX_SIZE:
      raise UserError(
        f'{len(self.chars)} distinct characters do not fit a vocabulary of '
        f'{MAX_SIZE}; set text.max_chars={MAX_SIZE - len(SPECIALS)} or less '
        'and text.unknown=replace, or use text.vocabulary=byte'
      )

  @staticmethod
  def byte() -> 'Vocabulary':
    """The 256 bytes: covers every text."""
    return Vocabulary('byte')

  @staticmethod
  def from_text(
    text: str, max_chars: int = 0, unknown: str = 'error'
  ) -> 'Vocabulary':
    """The characters of `text`, most frequent first, ties by code point.

    Args:
      text: the training text.
      max_chars: keep this many most frequent ones; 0 keeps all.
      unknown: policy of the result.

    Raises:
      UserError: no text, or more characters than 16-bit ids can tell apart.
    """
    codes, counts = utf8.count_characters(text)
    order = np.lexsort((codes, -counts))[: max_chars or None]
    return Vocabulary('char', utf8.from_code_points(codes[order]), unknown)

  @property
  def num_text_tokens(self) -> int:
    """Tokens without the specials; the id of a token is below this."""
    return 256 if self.kind == 'byte' else len(self.chars)

  @property
  def size(self) -> int:
    """Tokens and specials: the V of a model."""
    return self.num_text_tokens + len(SPECIALS)

  @property
  def bos(self) -> int:
    """Id of the token between documents. Never 0."""
    return self.num_text_tokens

  @property
  def eos(self) -> int:
    """Id of the token that ends a text."""
    return self.num_text_tokens + 1

  @property
  def pad(self) -> int:
    """Id that fills unused positions."""
    return self.num_text_tokens + 2

  @property
  def unk(self) -> int:
    """Id of every character outside the vocabulary."""
    return self.num_text_tokens + 3

  @property
  def dtype(self) -> np.dtype:
    """The smallest of uint8 and uint16 that holds every id."""
    return np.dtype(np.uint8 if self.size <= 256 else np.uint16)

  def encode(self, text: str | bytes) -> np.ndarray:
    """The ids of `text`, 1-D of `dtype`; never a BOS, EOS or PAD.

    Every `str` and every `bytes` has an answer. Kind 'byte' takes the bytes
    as they are, and a `str` as UTF-8 with the rule for surrogates of
    `craft_jax.data.text.utf8`. Kind 'char' takes code points; bytes are read as
    UTF-8, and one that is not becomes its surrogate U+DC80 to U+DCFF, which
    is outside the vocabulary unless the training text held it.

    Raises:
      UserError: a character outside the vocabulary, under unknown='error'.
    """
    if self.kind == 'byte':
      data = utf8.to_bytes(text) if isinstance(text, str) else text
      return np.frombuffer(data, np.uint8).astype(self.dtype)
    if not isinstance(text, str):
      text = bytes(text).decode('utf-8', 'surrogateescape')
    ids = np.empty(len(text), self.dtype)
    start = 0
    for codes in utf8.code_point_chunks(text):
      np.take(self._id_of, codes, out=ids[start : start + len(codes)])
      start += len(codes)
    if self.unknown == 'error':
      missing = ids == self.unk
      if missing.any():
        raise _not_covered(text, int(missing.argmax()))
    return ids

  def decode(self, ids: Any) -> str:
    """The text of `ids`, a 1-D integer array or list; specials vanish.

    Kind 'byte': what is not UTF-8 becomes U+FFFD.

    Raises:
      ValueError: not 1-D integers, or an id outside the vocabulary.
    """
    tokens = self._tokens(ids)
    if self.kind == 'byte':
      return tokens.astype(np.uint8).tobytes().decode('utf-8', 'replace')
    return utf8.from_code_points(self._code_of[tokens])

  def decode_bytes(self, ids: Any) -> bytes:
    """The bytes of `ids`; specials vanish. Raises as `decode`.

    Kind 'byte': exactly the bytes that were encoded.
    """
    if self.kind == 'byte':
      return self._tokens(ids).astype(np.uint8).tobytes()
    return utf8.to_bytes(self.decode(ids))

  def show(self, ids: Any) -> str:
    """The text of `ids` for people, always printable as UTF-8.

    Specials appear as `<bos>` and so on, stray bytes as `\\x80` and lone
    surrogates as `\\ud800`. Not reversible. Raises as `decode`.
    """
    array = self._checked(ids)
    pieces, start = [], 0
    for at in np.flatnonzero(array >= self.num_text_tokens):
      pieces.append(self._printable(array[start:at]))
      pieces.append(SPECIALS[int(array[at]) - self.num_text_tokens])
      start = int(at) + 1
    return ''.join([*pieces, self._printable(array[start:])])

  def to_json(self) -> str:
    """The vocabulary as one JSON object, ASCII only."""
    # One string per character: JSON would join two neighbouring surrogates.
    chars = list(self.chars)
    return strict_json.dumps(
      {'kind': self.kind, 'unknown': self.unknown, 'chars': chars}
    )

  @staticmethod
  def from_json(text: str) -> 'Vocabulary':
    """Inverse of `to_json`.

    Raises:
      UserError: not the JSON of a vocabulary.
    """
    try:
      fields = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
      raise UserError(f'the vocabulary is not JSON: {e}') from e
    names = {'kind', 'unknown', 'chars'}
    if not isinstance(fields, dict) or set(fields) != names:
      raise UserError(
        'the vocabulary must be a JSON object with exactly the keys '
        'kind, unknown and chars'
      )
    chars = fields['chars']
    if not isinstance(chars, list) or not all(
      isinstance(c, str) and len(c) == 1 for c in chars
    ):
      raise UserError('chars of the vocabulary must be single characters')
    return Vocabulary(fields['kind'], ''.join(chars), fields['unknown'])

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of `to_json`, in hexadecimal."""
    return hashlib.sha256(self.to_json().encode('ascii')).hexdigest()

  @functools.cached_property
  def _code_of(self) -> np.ndarray:
    """Code point of each token, `[num_text_tokens]`."""
    return utf8.code_points(self.chars)

  @functools.cached_property
  def _id_of(self) -> np.ndarray:
    """Id of each code point, UNK where there is none, `[0x110000]`."""
    table = np.full(utf8.MAX_CODE_POINT + 1, self.unk, self.dtype)
    table[self._code_of] = np.arange(self.num_text_tokens, dtype=self.dtype)
    return table

  def _checked(self, ids: Any) -> np.ndarray:
    """`ids` as a 1-D integer array within the vocabulary."""
    array = np.asarray(ids)
    if array.size == 0:
      return np.zeros(0, self.dtype)
    if array.ndim != 1 or array.dtype.kind not in 'iu':
      raise ValueError(
        f'ids must be 1-D integers, not {array.dtype}{list(array.shape)}'
      )
    if array.min() < 0 or array.max() >= self.size:
      raise ValueError(
        f'ids from {array.min()} to {array.max()} are outside a vocabulary of '
        f'{self.size}'
      )
    return array

  def _tokens(self, ids: Any) -> np.ndarray:
    """`ids` without the specials."""
    array = self._checked(ids)
    return array[array < self.num_text_tokens]

  def _printable(self, tokens: np.ndarray) -> str:
    data = self.decode_bytes(tokens)
    if self.kind == 'byte':
      return data.decode('utf-8', 'backslashreplace')
    text = self.decode(tokens)
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')


def _not_covered(text: str, position: int) -> UserError:
  """The error for the character at `position`, counted from 0."""
  character = text[position]
  code = ord(character)
  if 0xDC80 <= code <= 0xDCFF:
    name = f'byte 0x{code - 0xDC00:02X}, which is not UTF-8'
  else:
    name = unicodedata.name(character, 'unnamed')
  return UserError(
    f'character U+{code:04X} ({name}) at position {position} is not in the '
    'vocabulary; leave it out, or train with text.unknown=replace or '
    'text.vocabulary=byte'
  )
