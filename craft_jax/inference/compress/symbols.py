"""Conversion of any bytes to the values that are coded, and back.

A value below `escape` is a text token. Characters outside a char vocabulary are
coded as runs of at most 256 raw bytes: the value `escape`, the length minus 1,
the bytes. A byte vocabulary needs no escapes.
"""

import dataclasses
import functools

import numpy as np

from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary

LONGEST_RUN = 256
_LEAST_STREAM = 2048  # bytes
_MOST_STREAMS = 64


def escape(vocabulary: Vocabulary) -> int:
  """The value that precedes raw bytes; the model reads it as UNK."""
  return vocabulary.num_text_tokens


def choose_streams(size: int) -> int:
  """Number of streams for a file of `size` bytes, a power of two up to 64.

  Streams are rows of one batch, so more are faster. Each costs 12 bytes, and
  starts without context.
  """
  return min(1 << max((size // _LEAST_STREAM).bit_length() - 1, 0),
             _MOST_STREAMS)  # fmt: skip


def cut(data: bytes, streams: int) -> list[bytes]:
  """Splits data into parts of about equal size, at character boundaries."""
  at = [utf8.boundary(data, i * len(data) // streams) for i in range(streams)]
  return [data[a:b] for a, b in zip(at, [*at[1:], len(data)], strict=True)]


def to_values(vocabulary: Vocabulary, data: bytes) -> np.ndarray:
  """Converts any bytes to values, int32 `[N]`."""
  if vocabulary.kind == 'byte':
    return np.frombuffer(data, np.uint8).astype(np.int32)
  text = data.decode('utf-8', 'surrogateescape')
  ids = _covering(vocabulary).encode(text).astype(np.int32)
  edges = np.flatnonzero(np.diff(ids == vocabulary.unk, prepend=0, append=0))
  pieces, at = [], 0
  for start, end in edges.reshape(-1, 2).tolist():
    pieces.append(ids[at:start])
    raw = np.frombuffer(utf8.to_bytes(text[start:end]), np.uint8)
    for first in range(0, len(raw), LONGEST_RUN):
      run = raw[first : first + LONGEST_RUN]
      pieces.append(np.array([escape(vocabulary), len(run) - 1], np.int32))
      pieces.append(run.astype(np.int32))
    at = end
  return np.concatenate([*pieces, ids[at:]])


def to_bytes(vocabulary: Vocabulary, values: np.ndarray) -> bytes:
  """Converts values to bytes, the inverse of `to_values`.

  Raises:
    ValueError: a run of raw bytes is incomplete.
  """
  if vocabulary.kind == 'byte':
    return values.astype(np.uint8).tobytes()
  pieces, at = [], 0
  escapes = np.flatnonzero(values == escape(vocabulary))
  while (i := int(np.searchsorted(escapes, at))) < len(escapes):
    start = int(escapes[i])
    length = int(values[start + 1]) + 1 if start + 1 < len(values) else 1
    end = start + 2 + length
    if end > len(values):
      raise ValueError('a run of raw bytes has no end')
    pieces.append(vocabulary.decode_bytes(values[at:start]))
    pieces.append(values[start + 2 : end].astype(np.uint8).tobytes())
    at = end
  return b''.join([*pieces, vocabulary.decode_bytes(values[at:])])


@functools.lru_cache(4)  # keeps the table that the vocabulary builds
def _covering(vocabulary: Vocabulary) -> Vocabulary:
  """The vocabulary with UNK for characters outside it."""
  return dataclasses.replace(vocabulary, unknown='replace')
