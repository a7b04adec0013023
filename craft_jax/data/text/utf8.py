"""Bytes, code points and the borders between characters.

One rule covers surrogates, which a Python `str` can hold and UTF-8 cannot:
U+DC80 to U+DCFF stand for the raw bytes 0x80 to 0xFF (this is how Python
hands over undecodable bytes, in `sys.argv` for one), and every other lone
surrogate is written in the three-byte form of `surrogatepass`.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from craft_jax.errors import UserError

MAX_CODE_POINT = 0x10FFFF
_CONTINUATIONS = (0x80, 0xBF)  # the bytes of a character after its first
_CHUNK = 1 << 22  # characters turned into code points at a time
_ESCAPED = re.compile(rb'\xed([\xb2\xb3])([\x80-\xbf])')


def begins_character(byte: Any) -> Any:
  """Whether a byte begins a character of UTF-8; of an array each, any kind."""
  return (byte < _CONTINUATIONS[0]) | (byte > _CONTINUATIONS[1])


def to_bytes(text: str) -> bytes:
  """UTF-8 of any `str`, lone surrogates included (see the module)."""
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError:
    # Valid UTF-8 never has 0xED before 0xA0 to 0xBF, so each match is a
    # surrogate that this very call wrote.
    return _ESCAPED.sub(_raw_byte, text.encode('utf-8', 'surrogatepass'))


def _raw_byte(match: re.Match[bytes]) -> bytes:
  high, low = match[1][0], match[2][0]
  return bytes([(high & 0x03) << 6 | low & 0x3F])


def decode_strict(data: bytes, name: str = 'the text') -> str:
  """`data` as UTF-8.

  Raises:
    UserError: invalid UTF-8, with the offset of the first bad byte.
  """
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as e:
    raise UserError(
      f'{name} is not UTF-8: byte 0x{data[e.start]:02X} at offset {e.start}; '
      'put utf8-replace or utf8-drop first in text.clean, or use '
      'text.vocabulary=byte without cleaning'
    ) from e


def code_points(text: str) -> np.ndarray:
  """The code points of `text`, `[len(text)]`, as uint8 or uint32."""
  if text.isascii():
    return np.frombuffer(text.encode('ascii'), np.uint8)
  # An explicit byte order, so that U+FEFF is a character like any other.
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


def code_point_chunks(text: str) -> Iterator[np.ndarray]:
  """`code_points` in pieces, which bounds the memory of a large text."""
  for start in range(0, len(text), _CHUNK):
    yield code_points(text[start : start + _CHUNK])


def byte_offsets(text: str) -> np.ndarray:
  """Where each character of `text` starts in `to_bytes(text)`, int64."""
  sizes = [np.zeros(0, np.int64)]
  for codes in code_point_chunks(text):
    size = 1 + (codes[:, None] >= [0x80, 0x800, 0x10000]).sum(1)
    size[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1  # a raw byte
    sizes.append(size)
  size = np.concatenate(sizes)
  return np.cumsum(size) - size


def from_code_points(codes: np.ndarray) -> str:
  """Inverse of `code_points`; neighbouring surrogates are not joined."""
  return codes.astype('<u4').tobytes().decode('utf-32-le', 'surrogatepass')


def count_characters(text: str) -> tuple[np.ndarray, np.ndarray]:
  """The distinct code points of `text`, ascending, and their counts."""
  counts = np.zeros(MAX_CODE_POINT + 1, np.int64)
  for codes in code_point_chunks(text):
    chunk = np.bincount(codes)
    counts[: len(chunk)] += chunk
  present = np.flatnonzero(counts)
  return present, counts[present]


def boundary(data: bytes | np.ndarray, position: int) -> int:
  """The greatest border between characters at or before `position`.

  A split there cuts no well-formed character in two. Stray continuation
  bytes count as characters of their own, so at most 3 bytes are stepped
  back.

  Args:
    data: bytes, or tokens of a byte vocabulary (specials are borders).
    position: from 0 to `len(data)`.
  """
  if not 0 < position < len(data):
    return position
  for start in range(position - 1, max(position - 4, -1), -1):
    value = int(data[start])
    if 0x80 <= value < 0xC0:  # a continuation byte
      continue
    length = _sequence_length(value)
    piece = data[start : start + length]
    whole = len(piece) == length and start + length > position
    return start if whole and _is_character(piece) else position
  return position


def _sequence_length(lead: int) -> int:
  """Bytes of the character that `lead` starts; 1 if it starts none."""
  if 0xC2 <= lead < 0xE0:
    return 2
  if 0xE0 <= lead < 0xF0:
    return 3
  return 4 if 0xF0 <= lead < 0xF5 else 1


def _is_character(piece: bytes | np.ndarray) -> bool:
  """Whether the tokens of `piece` are UTF-8."""
  try:
    bytes(int(token) for token in piece).decode('utf-8')
  except ValueError:  # a special token, or not UTF-8
    return False
  return True
