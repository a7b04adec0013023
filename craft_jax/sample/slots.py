"""The device side of sampling: slots, reading into them, decoding from them.

A slot is a row of every array below. Its output depends on its own row alone,
up to the rounding of products of other shapes (docs/sampling.md).
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from craft_jax.model.cache import Cache
from craft_jax.model.transformer import Decoder
from craft_jax.sample.choose import RowSettings, choose, forbid_specials
from craft_jax.text.vocabulary import Vocabulary
from craft_jax.types import Params


@flax.struct.dataclass
class Slots:
  """Texts being written.

  Attributes:
    cache: what the model has read of each window.
    last_B: the newest symbol, which the model reads next.
    segment_B: document number of what was read, counted in the window.
    position_B: symbols of the whole text so far, the newest included.
    settings: how each row chooses.
  """

  cache: Cache
  last_B: Int[Array, 'B']
  segment_B: Int[Array, 'B']
  position_B: Int[Array, 'B']
  settings: RowSettings


@functools.partial(jax.jit, static_argnames=('model',))
def open_slots(
  model: Decoder,
  position_B: Int[Array, 'B'],
  temperature_B: Float[Array, 'B'],
  top_k_B: Int[Array, 'B'],
  top_p_B: Float[Array, 'B'],
  end_B: Bool[Array, 'B'],
  seed: UInt[Array, ''],
  row_B: UInt[Array, 'B'],
) -> Slots:
  """Slots that have read nothing; the key of a row is `fold_in(seed, row)`."""
  B = position_B.shape[0]
  key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), row_B)
  return Slots(
    cache=model.init_cache(B, model.cfg.context),
    last_B=jnp.zeros(B, jnp.int32),
    segment_B=jnp.zeros(B, jnp.int32),
    position_B=position_B,
    settings=RowSettings(temperature_B, top_k_B, top_p_B, end_B, key_B),
  )


@functools.partial(
  jax.jit, static_argnames=('model', 'vocabulary'), donate_argnames='slots'
)
def read(
  model: Decoder,
  vocabulary: Vocabulary,
  params: Params,
  slots: Slots,
  window_BT: Int[Array, 'B T'],
  length_B: Int[Array, 'B'],
  last_B: Int[Array, 'B'],
  which_B: Bool[Array, 'B'],
) -> Slots:
  """Gives the rows of `which_B` a new window; the prefill.

  Args:
    model: the model.
    vocabulary: its symbols.
    params: its parameters.
    slots: donated.
    window_BT: the window without its newest symbol, padded to any T.
    length_B: symbols of the row in `window_BT`.
    last_B: the newest symbol.
    which_B: the other rows stay as they are.
  """
  old = slots.cache
  # The other rows read nothing: what is written past their length is as
  # unspecified as what it replaces.
  cache = dataclasses.replace(old, length_B=jnp.where(which_B, 0, old.length_B))
  real_BT = jnp.arange(window_BT.shape[1])[None] < length_B[:, None]
  segment_BT = jnp.cumsum((window_BT == vocabulary.bos) & real_BT, axis=1)
  # The logits are not used, so the head is compiled away.
  cache, _ = model.extend(
    params,
    cache,
    window_BT,
    jnp.where(which_B, length_B, 0),
    segment_BT.astype(jnp.int32),
  )
  return dataclasses.replace(
    slots,
    cache=cache,
    last_B=jnp.where(which_B, last_B, slots.last_B),
    segment_B=jnp.where(
      which_B, segment_BT[:, -1].astype(jnp.int32), slots.segment_B
    ),
  )


def step(
  model: Decoder,
  vocabulary: Vocabulary,
  params: Params,
  slots: Slots,
  live_B: Bool[Array, 'B'],
) -> tuple[Slots, Int[Array, 'B']]:
  """Reads the newest symbol of each live row and chooses the one after it.

  A live row must have room in its cache. Pure; PAD for rows not live.
  """
  segment_B = slots.segment_B + (slots.last_B == vocabulary.bos)
  cache, logits_BTV = model.extend(
    params,
    slots.cache,
    slots.last_B[:, None],
    live_B.astype(jnp.int32),
    segment_B[:, None],
  )
  logits_BV = forbid_specials(
    logits_BTV[:, 0],
    slots.settings.end_B,
    vocabulary.num_symbols,
    (vocabulary.bos, vocabulary.eos),
  )
  token_B = choose(logits_BV, slots.settings, slots.position_B)
  slots = dataclasses.replace(
    slots,
    cache=cache,
    last_B=jnp.where(live_B, token_B, slots.last_B),
    segment_B=jnp.where(live_B, segment_B, slots.segment_B),
    position_B=slots.position_B + live_B,
  )
  return slots, jnp.where(live_B, token_B, vocabulary.pad)


@functools.partial(
  jax.jit,
  static_argnames=('model', 'vocabulary', 'capacity'),
  donate_argnames='slots',
)
def decode(
  model: Decoder,
  vocabulary: Vocabulary,
  params: Params,
  slots: Slots,
  live_B: Bool[Array, 'B'],
  num_steps: Int[Array, ''],
  capacity: int,
) -> tuple[Slots, Int[Array, 'B C']]:
  """Writes up to `num_steps` symbols per live row in one dispatch.

  The trip count is traced, so any number of steps is one executable.

  Args:
    model: the model.
    vocabulary: its symbols.
    params: its parameters.
    slots: donated.
    live_B: rows that write; each has room for `num_steps` symbols.
    num_steps: at most `capacity`.
    capacity: C, columns of the answer.

  Returns:
    The slots, and the symbols: an end is the last of its row, PAD after it.
  """
  out_BC = jnp.full((live_B.shape[0], capacity), vocabulary.pad, jnp.int32)

  def more(carry):
    i, _, live_B, _ = carry
    return (i < num_steps) & jnp.any(live_B)

  def body(carry):
    i, slots, live_B, out_BC = carry
    slots, token_B = step(model, vocabulary, params, slots, live_B)
    out_BC = jax.lax.dynamic_update_slice(out_BC, token_B[:, None], (0, i))
    ended_B = (token_B == vocabulary.bos) | (token_B == vocabulary.eos)
    return i + 1, slots, live_B & ~ended_B, out_BC

  start = (jnp.zeros((), jnp.int32), slots, live_B, out_BC)
  _, slots, _, out_BC = jax.lax.while_loop(more, body, start)
  return slots, out_BC
