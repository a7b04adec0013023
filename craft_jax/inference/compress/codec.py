"""Encoding of values to streams and back: the host loop over dispatches."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.compress import coder
from craft_jax.inference.compress import loop as loop_lib
from craft_jax.inference.sampling.generate import decoding_params
from craft_jax.inference.sampling.prompt import start_tokens
from craft_jax.model.protocol import Model
from craft_jax.types import Params

_STEPS = 256  # approximate steps per dispatch
_STATE_BYTES = 4
Tick = Callable[[int, int], None]


class Encoded(NamedTuple):
  """Result of `Codec.encode`.

  Attributes:
    streams: encoded bytes of each text.
    ideal_bits: negative log2-probability of all values, the length that an
      ideal coder would reach.
  """

  streams: list[bytes]
  ideal_bits: float


class Damaged(ValueError):
  """Streams that `Codec.encode` cannot have produced."""


class Codec:
  """Encodes and decodes with a model."""

  def __init__(
    self,
    model: Model,
    params: Params,
    vocabulary: Vocabulary,
    documents: bool,
  ):
    """Creates a codec; compiles nothing yet.

    Args:
      model: the model.
      params: parameters of the model.
      vocabulary: vocabulary of the model.
      documents: whether the training text has several documents, which decides
        the token before a text (`start_tokens`).
    """
    self.model, self.vocabulary = model, vocabulary
    self.start = int(start_tokens(vocabulary, documents)[0])
    self._params = decoding_params(model, params)
    leaf = jax.tree.leaves(self._params)[0]
    self._device = next(iter(leaf.devices()))
    period = loop_lib.period(model.context)
    # A multiple of the period, so that results do not depend on the capacity.
    self._capacity = max(_STEPS // period, 1) * period

  def encode(
    self,
    values: Sequence[np.ndarray],
    tick: Tick = lambda done, total: None,
  ) -> Encoded:
    """Encodes texts in parallel, one stream each.

    Args:
      values: values of each text, from `symbols.to_values`; at least one text.
      tick: called with the number of steps done and of all steps.

    Raises:
      FloatingPointError: the model returns logits that are not finite.
    """
    C, B = self._capacity, len(values)
    lengths = [len(v) for v in values]
    start = np.full(B, coder.LOWEST, np.uint32)
    rows = self._open(start)
    nothing = np.zeros((B, C * coder.MOST_BYTES), np.uint8)
    intervals, nats = [], 0.0
    for at in range(0, max(lengths), C):
      given_BC = np.zeros((B, C), np.int32)
      for row, whole in zip(given_BC, values, strict=True):
        piece = whole[at : at + C]
        row[: len(piece)] = piece
      rows, out = self._advance(rows, lengths, at, False, given_BC, nothing)
      intervals.append(jax.device_get((out.start_BC, out.count_BC)))
      nats += float(np.sum(jax.device_get(out.nats_B), dtype=np.float64))
      tick(min(at + C, max(lengths)), max(lengths))
    if not math.isfinite(nats):
      raise FloatingPointError('the model returns logits that are not finite')
    return Encoded(self._push(start, intervals), nats / math.log(2))

  def decode(
    self,
    streams: Sequence[bytes],
    lengths: Sequence[int],
    tick: Tick = lambda done, total: None,
  ) -> list[np.ndarray]:
    """Decodes streams to the values that were encoded.

    Args:
      streams: streams from `encode`.
      lengths: number of values in each stream.
      tick: called with the number of steps done and of all steps.

    Raises:
      Damaged: a stream is too short or too long, or its final state is wrong.
        Not all damage is detected.
    """
    C, B = self._capacity, len(streams)
    if any(len(stream) < _STATE_BYTES for stream in streams):
      raise Damaged('a stream is too short')
    states = [int.from_bytes(s[:_STATE_BYTES], 'big') for s in streams]
    if any(state < coder.LOWEST for state in states):
      raise Damaged('a stream has an invalid initial state')
    rows = self._open(np.array(states, np.uint32))
    given_BC = np.zeros((B, C), np.int32)
    position_B = np.full(B, _STATE_BYTES)
    pieces = []
    for at in range(0, max(lengths), C):
      byte_BW = np.zeros((B, C * coder.MOST_BYTES), np.uint8)
      for row, stream, position in zip(
        byte_BW, streams, position_B, strict=True
      ):
        piece = stream[position : position + len(row)]
        row[: len(piece)] = np.frombuffer(piece, np.uint8)
      rows, out = self._advance(rows, lengths, at, True, given_BC, byte_BW)
      value_BC, used_B = jax.device_get((out.value_BC, out.used_B))
      position_B += used_B
      if any(p > len(s) for p, s in zip(position_B, streams, strict=True)):
        raise Damaged('a stream ends too early')
      pieces.append(value_BC)
      tick(min(at + C, max(lengths)), max(lengths))
    if any(p < len(s) for p, s in zip(position_B, streams, strict=True)):
      raise Damaged('a stream has extra bytes')
    state_B, raw_B = jax.device_get((rows.state_B, rows.raw_B))
    if (state_B != coder.LOWEST).any() or raw_B.any():
      raise Damaged('a stream has an invalid final state')
    whole = np.concatenate([np.zeros((B, 0), np.int32), *pieces], axis=1)
    return [row[:n] for row, n in zip(whole, lengths, strict=True)]

  def _open(self, state_B: np.ndarray) -> loop_lib.Rows:
    last_B = np.full(len(state_B), self.start, np.int32)
    return loop_lib.open_rows(
      self.model,
      self.vocabulary,
      *jax.device_put((last_B, state_B), self._device),
    )

  def _advance(self, rows, lengths, at, decoding, given_BC, byte_BW):
    left_B = np.maximum(np.array(lengths) - at, 0).astype(np.int32)
    arrays = (left_B, np.array(decoding), given_BC, byte_BW)
    return loop_lib.advance(
      self.model,
      self.vocabulary,
      self._params,
      rows,
      *jax.device_put(arrays, self._device),
    )

  def _push(self, state_B, intervals) -> list[bytes]:
    """Streams of intervals: the coder state, then bytes in decoding order."""
    pieces: list[list[bytes]] = [[] for _ in state_B]
    for start_BC, count_BC in reversed(intervals):
      state_B, *coded = coder.push_all(
        *jax.device_put((state_B, start_BC, count_BC), self._device)
      )
      byte_BCN, real_BCN = jax.device_get(coded)
      for row, byte_CN, real_CN in zip(pieces, byte_BCN, real_BCN, strict=True):
        row.append(byte_CN[real_CN > 0].tobytes())
    return [
      int(state).to_bytes(_STATE_BYTES, 'big') + b''.join(row[::-1])
      for state, row in zip(jax.device_get(state_B), pieces, strict=True)
    ]
