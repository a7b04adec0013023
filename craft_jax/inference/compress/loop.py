"""The model and the coder in one loop on the device, streams as rows.

What makes it lossless is that encoding and decoding run one and the same
compiled program: a flag, not another program, says whether a step takes its
value from the text or from the coder. So the probabilities of a step are the
same bits in both, whatever rounding the device prefers.
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
  """Steps between two looks at the windows: half a context, or more."""
  return context - context // 2


@flax.struct.dataclass
class Rows:
  """Streams being coded.

  Attributes:
    cache: what the model has read of each window.
    last_B: the newest symbol, which the model reads next.
    raw_B: raw bytes to come before the model is asked again; -1 if their
      number comes first.
    state_B: of the coder; when encoding, without meaning.
  """

  cache: Cache
  last_B: Int[Array, 'B']
  raw_B: Int[Array, 'B']
  state_B: UInt[Array, 'B']


@flax.struct.dataclass
class Written:
  """What a dispatch gives, a column per step.

  Attributes:
    value_BC: what was coded.
    start_BC: of its interval.
    count_BC: of its interval; 0 past the end of a row.
    nats_B: minus the log probability of all of it.
    used_B: bytes taken from each stream.
  """

  value_BC: Int[Array, 'B C']
  start_BC: UInt[Array, 'B C']
  count_BC: UInt[Array, 'B C']
  nats_B: Float[Array, 'B']
  used_B: Int[Array, 'B']


class Column(NamedTuple):
  """What one step gives: a column of `Written`."""

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
  """Rows that have read nothing; `last_B` is what stands before the text."""
  return Rows(
    cache=model.init_cache(len(last_B), model.context),
    last_B=last_B,
    raw_B=jnp.zeros_like(last_B),
    state_B=state_B,
  )


def read_newer_half(model: Model, params: Params, rows: Rows) -> Rows:
  """Reads the newer half of each window afresh, where it holds more."""
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
    # The logits are not used, so the head is compiled away. In rows that read
    # nothing only what is past their length is written.
    cache, _ = model.extend(
      params, cache, window_BT, jnp.where(full_B, kept, 0)
    )
  return dataclasses.replace(rows, cache=cache)


def _logits_of_values(
  vocabulary: Vocabulary, logits_BV: Float[Array, 'B V']
) -> Float[Array, 'B A']:
  """Logits of what may be coded: specials but UNK, the escape, left out."""
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
    vocabulary: its symbols.
    params: its parameters.
    rows: with room for a symbol in each cache.
    live_B: rows that are not at their end.
    decoding: take values from the coder, not from `given_B`.
    given_B: values to encode.
    byte_BN: the next bytes of each stream, to decode.
  """
  asks_B = live_B & (rows.raw_B == 0)
  cache, logits_BTV = model.extend(
    params, rows.cache, rows.last_B[:, None], asks_B.astype(jnp.int32)
  )
  logits_BA = _logits_of_values(vocabulary, logits_BTV[:, 0])
  bound_BA1 = coder.boundaries(jax.nn.softmax(logits_BA, axis=1))

  # Raw bytes, and their number, are uniform over 256 values.
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

  Each half context of steps begins with `read_newer_half`, so a window never
  outgrows its cache.

  Args:
    model: the model.
    vocabulary: its symbols.
    params: its parameters.
    rows: donated.
    left_B: values to the end of each row.
    decoding: take values from `byte_BW`, not from `given_BC`.
    given_BC: values to encode.
    byte_BW: the next bytes of each stream, to decode; W is C times
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
  """Before the first column."""
  return Written(
    value_BC=jnp.zeros((B, C), jnp.int32),
    start_BC=jnp.zeros((B, C), jnp.uint32),
    count_BC=jnp.zeros((B, C), jnp.uint32),
    nats_B=jnp.zeros(B),
    used_B=jnp.zeros(B, jnp.int32),
  )


def _with_column(out: Written, i: Int[Array, ''], new: Column) -> Written:
  """Writes column `i`, and adds to the sums."""
  put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=1)
  return Written(
    value_BC=put(out.value_BC, new.value_B, i),
    start_BC=put(out.start_BC, new.start_B, i),
    count_BC=put(out.count_BC, new.count_B, i),
    nats_B=out.nats_B + new.nats_B,
    used_B=out.used_B + new.used_B,
  )
