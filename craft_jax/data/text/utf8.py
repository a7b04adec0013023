"""UTF-8, code points and character boundaries.

A Python `str` may hold lone surrogates, which UTF-8 cannot encode. Here U+DC80
to U+DCFF stand for the raw bytes 0x80 to 0xFF, as in Python's `surrogateescape`
(PEP 383); other lone surrogates get the three-byte form of `surrogatepass`.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from craft_jax.errors import UserError

MAX_CODE_POINT = 0x10FFFF
_CONTINUATIONS = (0x80, 0xBF)  # range of continuation bytes
_CHUNK = 1 << 22  # characters per chunk
_ESCAPED = re.compile(rb'\xed([\xb2\xb3])([\x80-\xbf])')


def begins_character(byte: Any) -> Any:
  """Whether a byte, or each of an array, is not a continuation byte."""
  return (byte < _CONTINUATIONS[0]) | (byte > _CONTINUATIONS[1])


def to_bytes(text: str) -> bytes:
  """Encodes any `str`; U+DC80 to U+DCFF become raw bytes."""
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError:
    # In valid UTF-8, 0xED never precedes 0xA0 to 0xBF, so that each match is a
    # surrogate encoded by this call.
    return _ESCAPED.sub(_raw_byte, text.encode('utf-8', 'surrogatepass'))


def _raw_byte(match: re.Match[bytes]) -> bytes:
  high, low = match[1][0], match[2][0]
  return bytes([(high & 0x03) << 6 | low & 0x3F])


def decode_strict(data: bytes, name: str = 'the text') -> str:
  """Decodes valid UTF-8.

  Raises:
    UserError: invalid UTF-8; the message has the offset of the first bad byte.
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
  """Code points of `text`, uint8 or uint32 `[len(text)]`."""
  if text.isascii():
    return np.frombuffer(text.encode('ascii'), np.uint8)
  # With an explicit byte order U+FEFF is no byte order mark.
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


def code_point_chunks(text: str) -> Iterator[np.ndarray]:
  """Yields `code_points` in chunks, to bound memory."""
  for start in range(0, len(text), _CHUNK):
    yield code_points(text[start : start + _CHUNK])


def byte_offsets(text: str) -> np.ndarray:
  """Offset of each character of `text` in `to_bytes(text)`, int64."""
  sizes = [np.zeros(0, np.int64)]
  for codes in code_point_chunks(text):
    size = 1 + (codes[:, None] >= [0x80, 0x800, 0x10000]).sum(1)
    size[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1  # a raw byte
    sizes.append(size)
  size = np.concatenate(sizes)
  return np.cumsum(size) - size


def from_code_points(codes: np.ndarray) -> str:
  """Inverse of `code_points`; adjacent surrogates are not joined."""
  return codes.astype('<u4').tobytes().decode('utf-32-le', 'surrogatepass')


def count_characters(text: str) -> tuple[np.ndarray, np.ndarray]:
  """Distinct code points of `text`, ascending, and their counts."""
  counts = np.zeros(MAX_CODE_POINT + 1, np.int64)
  for codes in code_point_chunks(text):
    chunk = np.bincount(codes)
    counts[: len(chunk)] += chunk
  present = np.flatnonzero(counts)
  return present, counts[present]


def boundary(data: bytes | np.ndarray, position: int) -> int:
  """Largest character boundary at or before `position`.

  Cutting there splits no valid character. Stray continuation bytes count as
  characters, so the result is at most 3 bytes before `position`.

  Args:
    data: bytes, or tokens of a byte vocabulary, where special tokens count as
      characters.
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
  """Length of the sequence that byte `lead` starts, or 1 if it is no lead."""
  if 0xC2 <= lead < 0xE0:
    return 2
  if 0xE0 <= lead < 0xF0:
    return 3
  return 4 if 0xF0 <= lead < 0xF5 else 1


def _is_character(piece: bytes | np.ndarray) -> bool:
  """Whether all of `piece` is valid UTF-8."""
  try:
    bytes(int(token) for token in piece).decode('utf-8')
  except ValueError:  # a special token, or not UTF-8
    return False
  return True
