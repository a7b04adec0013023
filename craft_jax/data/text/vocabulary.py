"""The vocabulary: text to token ids and back, for bytes or characters.

Ids start with the text tokens (the 256 bytes, or characters by descending
frequency) and end with four special tokens: BOS, EOS, PAD and UNK. Special
tokens are never parsed from text: the five characters of `<bos>` are five
tokens.
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
  """A vocabulary of bytes or characters.

  Attributes:
    kind: 'byte' or 'char'.
    chars: characters in id order for kind 'char'; '' for kind 'byte'.
    unknown: how `encode` treats a character outside the vocabulary: 'error'
      raises, 'replace' returns UNK.

  Raises:
    UserError: a field is invalid, such as a repeated character.
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
    """The vocabulary of the 256 bytes, which covers every text."""
    return Vocabulary('byte')

  @staticmethod
  def from_text(
    text: str, max_chars: int = 0, unknown: str = 'error'
  ) -> 'Vocabulary':
    """Builds a vocabulary of the characters of `text`, most frequent first.

    Args:
      text: the training text.
      max_chars: number of most frequent characters to keep; 0 keeps all.
      unknown: how `encode` treats other characters: 'error' or 'replace'.

    Raises:
      UserError: the text is empty, or has more characters than fit 16-bit ids.
    """
    codes, counts = utf8.count_characters(text)
    order = np.lexsort((codes, -counts))[: max_chars or None]
    return Vocabulary('char', utf8.from_code_points(codes[order]), unknown)

  @property
  def num_text_tokens(self) -> int:
    """Number of tokens without special tokens, whose ids start here."""
    return 256 if self.kind == 'byte' else len(self.chars)

  @property
  def size(self) -> int:
    """Number of tokens including special tokens: the V of a model."""
    return self.num_text_tokens + len(SPECIALS)

  @property
  def bos(self) -> int:
    """Id of the token between documents; never 0."""
    return self.num_text_tokens

  @property
  def eos(self) -> int:
    """Id of the token that ends a text."""
    return self.num_text_tokens + 1

  @property
  def pad(self) -> int:
    """Id that pads arrays."""
    return self.num_text_tokens + 2

  @property
  def unk(self) -> int:
    """Id that stands for every character outside the vocabulary."""
    return self.num_text_tokens + 3

  @property
  def dtype(self) -> np.dtype:
    """Smallest dtype that holds every id: uint8 or uint16."""
    return np.dtype(np.uint8 if self.size <= 256 else np.uint16)

  def encode(self, text: str | bytes) -> np.ndarray:
    """Encodes `text` to ids, 1-D of `dtype`, without BOS, EOS or PAD.

    Kind 'byte' encodes bytes as they are, and a `str` by `utf8.to_bytes`. Kind
    'char' encodes code points; `bytes` are decoded as UTF-8 first, with invalid
    bytes as surrogates U+DC80 to U+DCFF (`surrogateescape`).

    Raises:
      UserError: a character is outside the vocabulary and `unknown` is 'error'.
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
    """Decodes ids, a 1-D integer array or list, omitting special tokens.

    For kind 'byte', invalid UTF-8 becomes U+FFFD.

    Raises:
      ValueError: not 1-D integers, or an id outside the vocabulary.
    """
    tokens = self._tokens(ids)
    if self.kind == 'byte':
      return tokens.astype(np.uint8).tobytes().decode('utf-8', 'replace')
    return utf8.from_code_points(self._code_of[tokens])

  def decode_bytes(self, ids: Any) -> bytes:
    """Decodes ids to bytes, omitting special tokens.

    For kind 'byte', returns exactly the bytes that were encoded.

    Raises:
      ValueError: not 1-D integers, or an id outside the vocabulary.
    """
    if self.kind == 'byte':
      return self._tokens(ids).astype(np.uint8).tobytes()
    return utf8.to_bytes(self.decode(ids))

  def show(self, ids: Any) -> str:
    """Decodes ids for display, always encodable as UTF-8; not reversible.

    Special tokens are shown as `<bos>` etc., invalid bytes as `\\x80` and lone
    surrogates as `\\ud800`.

    Raises:
      ValueError: not 1-D integers, or an id outside the vocabulary.
    """
    array = self._checked(ids)
    pieces, start = [], 0
    for at in np.flatnonzero(array >= self.num_text_tokens):
      pieces.append(self._printable(array[start:at]))
      pieces.append(SPECIALS[int(array[at]) - self.num_text_tokens])
      start = int(at) + 1
    return ''.join([*pieces, self._printable(array[start:])])

  def to_json(self) -> str:
    """Serializes the vocabulary to a JSON object, ASCII only."""
    # One string per character, because JSON would join adjacent surrogates.
    chars = list(self.chars)
    return strict_json.dumps(
      {'kind': self.kind, 'unknown': self.unknown, 'chars': chars}
    )

  @staticmethod
  def from_json(text: str) -> 'Vocabulary':
    """Inverse of `to_json`.

    Raises:
      UserError: `text` is not the JSON of a vocabulary.
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
    """Code point of each text token, `[num_text_tokens]`."""
    return utf8.code_points(self.chars)

  @functools.cached_property
  def _id_of(self) -> np.ndarray:
    """Id of each code point, UNK if not in the vocabulary, `[0x110000]`."""
    table = np.full(utf8.MAX_CODE_POINT + 1, self.unk, self.dtype)
    table[self._code_of] = np.arange(self.num_text_tokens, dtype=self.dtype)
    return table

  def _checked(self, ids: Any) -> np.ndarray:
    """Checks `ids` and returns them as a 1-D integer array."""
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
    """`ids` without special tokens."""
    array = self._checked(ids)
    return array[array < self.num_text_tokens]

  def _printable(self, tokens: np.ndarray) -> str:
    data = self.decode_bytes(tokens)
    if self.kind == 'byte':
      return data.decode('utf-8', 'backslashreplace')
    text = self.decode(tokens)
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')


def _not_covered(text: str, position: int) -> UserError:
  """The error for a character that is not in the vocabulary."""
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
