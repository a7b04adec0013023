"""The device loop of the model and the coder; streams are rows of a batch.

Encoding and decoding run the same compiled program: a flag says whether a step
takes its value from the text or from the coder. The probabilities of a step are
therefore bitwise equal in both, whatever the rounding of the device, which
makes compression lossless.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.compress import coder, symbols
from craft_jax.model.cache import Cache
from craft_jax.model.protocol import Model
from craft_jax.types import Params


def period(context: int) -> int:
  """Steps between calls of `read_newer_half`: half the context, rounded up."""
  return context - context // 2


@flax.struct.dataclass
class Rows:
  """State of the streams.

  Attributes:
    cache: KV cache of each window.
    last_B: newest token, which the model reads next.
    raw_B: remaining raw bytes of a run, which are coded without the model; -1
      if the length of the run comes next.
    state_B: state of the coder; unused when encoding.
  """

  cache: Cache
  last_B: Int[Array, 'B']
  raw_B: Int[Array, 'B']
  state_B: UInt[Array, 'B']


@flax.struct.dataclass
class Written:
  """Output of a dispatch, one column per step.

  Attributes:
    value_BC: coded values.
    start_BC: start of their intervals.
    count_BC: count of their intervals; 0 past the end of a row.
    nats_B: negative log-probability of all values of a row.
    used_B: bytes consumed from each stream.
  """

  value_BC: Int[Array, 'B C']
  start_BC: UInt[Array, 'B C']
  count_BC: UInt[Array, 'B C']
  nats_B: Float[Array, 'B']
  used_B: Int[Array, 'B']


class Column(NamedTuple):
  """Output of one step, a column of `Written`."""

  value_B: Int[Array, 'B']
  start_B: UInt[Array, 'B']
  count_B: UInt[Array, 'B']
  nats_B: Float[Array, 'B']
  used_B: Int[Array, 'B']


@functools.partial(jax.jit, static_argnames=('model', 'vocabulary'))
def open_rows(
  model: Model,
  vocabulary: Vocabulary,
  last_B: Int[Array, 'B'],
  state_B: UInt[Array, 'B'],
) -> Rows:
  """Initial state of the streams; `last_B` is the token before each text."""
  return Rows(
    cache=model.init_cache(len(last_B), model.context),
    last_B=last_B,
    raw_B=jnp.zeros_like(last_B),
    state_B=state_B,
  )


def read_newer_half(model: Model, params: Params, rows: Rows) -> Rows:
  """Shortens windows longer than half the context, by rereading their end."""
  kept = model.context // 2
  cache = rows.cache
  full_B = cache.length_B > kept
  index_BT = jnp.maximum(cache.length_B - kept, 0)[:, None]
  index_BT = index_BT + jnp.arange(kept)[None]
  window_BT = jnp.take_along_axis(cache.token_BS, index_BT, axis=1)
  cache = dataclasses.replace(
    cache, length_B=jnp.where(full_B, 0, cache.length_B)
  )
  if kept:
    # The logits are unused, so the compiler removes the head. Rows that are
    # not shortened are written only past their length.
    cache, _ = model.extend(
      params, cache, window_BT, jnp.where(full_B, kept, 0)
    )
  return dataclasses.replace(rows, cache=cache)


def _logits_of_values(
  vocabulary: Vocabulary, logits_BV: Float[Array, 'B V']
) -> Float[Array, 'B A']:
  """Logits of the values: all text tokens, and UNK as the escape."""
  known_BA = logits_BV[:, : vocabulary.num_text_tokens]
  if vocabulary.kind == 'byte':
    return known_BA
  unknown_B1 = logits_BV[:, vocabulary.unk, None]
  return jnp.concatenate([known_BA, unknown_B1], axis=1)


def step(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  rows: Rows,
  live_B: Bool[Array, 'B'],
  decoding: Bool[Array, ''],
  given_B: Int[Array, 'B'],
  byte_BN: UInt[Array, 'B N'],
) -> tuple[Rows, Column]:
  """Codes one value of each live row. Pure.

  Args:
    model: the model.
    vocabulary: vocabulary of the model.
    params: parameters of the model.
    rows: state, with space for a token in each cache.
    live_B: rows that have not ended.
    decoding: take values from the coder instead of `given_B`.
    given_B: values to encode.
    byte_BN: next bytes of each stream to decode, uint8.
  """
  asks_B = live_B & (rows.raw_B == 0)
  cache, logits_BTV = model.extend(
    params, rows.cache, rows.last_B[:, None], asks_B.astype(jnp.int32)
  )
  logits_BA = _logits_of_values(vocabulary, logits_BTV[:, 0])
  bound_BA1 = coder.boundaries(jax.nn.softmax(logits_BA, axis=1))

  # Raw bytes and the lengths of runs are uniform over 256 values.
  slot_B = coder.slot(rows.state_B)
  shift = coder.BITS - 8
  byte_B = (slot_B >> shift).astype(jnp.int32)
  found_B = jnp.where(asks_B, coder.find(bound_BA1, slot_B), byte_B)
  value_B = jnp.where(decoding, found_B, given_B)
  start_B, count_B = coder.interval(bound_BA1, value_B)
  start_B = jnp.where(asks_B, start_B, value_B.astype(jnp.uint32) << shift)
  count_B = jnp.where(asks_B, count_B, jnp.uint32(1 << shift))
  count_B = jnp.where(live_B, count_B, jnp.uint32(0))
  state_B, used_B = coder.pop(rows.state_B, start_B, count_B, byte_BN)

  log_p_BA = jax.nn.log_softmax(logits_BA, axis=1)
  index_B1 = jnp.minimum(value_B, log_p_BA.shape[1] - 1)[:, None]
  nats_B = -jnp.take_along_axis(log_p_BA, index_B1, axis=1)[:, 0]
  nats_B = jnp.where(asks_B, nats_B, math.log(256))

  escapes_B = asks_B & (value_B == symbols.escape(vocabulary))
  token_B = jnp.where(escapes_B, vocabulary.unk, value_B)
  left_B = jnp.where(rows.raw_B < 0, value_B + 1, rows.raw_B - 1)
  left_B = jnp.where(asks_B, -escapes_B.astype(jnp.int32), left_B)
  rows = Rows(
    cache=cache,
    last_B=jnp.where(asks_B, token_B, rows.last_B),
    raw_B=jnp.where(live_B, left_B, rows.raw_B),
    state_B=state_B,
  )
  nats_B = jnp.where(live_B, nats_B, 0.0)
  return rows, Column(value_B, start_B, count_B, nats_B, used_B)


@functools.partial(
  jax.jit, static_argnames=('model', 'vocabulary'), donate_argnames='rows'
)
def advance(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  rows: Rows,
  left_B: Int[Array, 'B'],
  decoding: Bool[Array, ''],
  given_BC: Int[Array, 'B C'],
  byte_BW: UInt[Array, 'B W'],
) -> tuple[Rows, Written]:
  """Codes up to C values of each row in one dispatch.

  Every `period` steps it calls `read_newer_half`, so that windows never outgrow
  the cache.

  Args:
    model: the model.
    vocabulary: vocabulary of the model.
    params: parameters of the model.
    rows: state, which is donated.
    left_B: remaining values of each row.
    decoding: take values from `byte_BW` instead of `given_BC`.
    given_BC: values to encode.
    byte_BW: next bytes of each stream to decode, uint8; W is C times
      `coder.MOST_BYTES`.
  """
  B, C = given_BC.shape
  steps = period(model.context)
  num_steps = jnp.minimum(jnp.max(left_B), C)
  reach_1N = jnp.arange(coder.MOST_BYTES)[None]

  def one(i, carry):
    rows, out = carry
    byte_BN = jnp.take_along_axis(
      byte_BW, out.used_B[:, None] + reach_1N, axis=1
    )
    rows, new = step(
      model,
      vocabulary,
      params,
      rows,
      i < left_B,
      decoding,
      jax.lax.dynamic_index_in_dim(given_BC, i, axis=1, keepdims=False),
      byte_BN,
    )
    return rows, _with_column(out, i, new)

  def some(group, carry):
    rows, out = carry
    rows = read_newer_half(model, params, rows)
    first = group * steps
    last = jnp.minimum(first + steps, num_steps)
    return jax.lax.fori_loop(first, last, one, (rows, out))

  groups = (num_steps + steps - 1) // steps
  return jax.lax.fori_loop(0, groups, some, (rows, _nothing(B, C)))


def _nothing(B: int, C: int) -> Written:
  """Empty output."""
  return Written(
    value_BC=jnp.zeros((B, C), jnp.int32),
    start_BC=jnp.zeros((B, C), jnp.uint32),
    count_BC=jnp.zeros((B, C), jnp.uint32),
    nats_B=jnp.zeros(B),
    used_B=jnp.zeros(B, jnp.int32),
  )


def _with_column(out: Written, i: Int[Array, ''], new: Column) -> Written:
  """Writes column `i` and adds to the sums."""
  put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=1)
  return Written(
    value_BC=put(out.value_BC, new.value_B, i),
    start_BC=put(out.start_BC, new.start_B, i),
    count_BC=put(out.count_BC, new.count_B, i),
    nats_B=out.nats_B + new.nats_B,
    used_B=out.used_B + new.used_B,
  )
