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
from craft_jax.sample.choose import RowSettings, choose, penalize
from craft_jax.sample.tables import Tables, restrict
from craft_jax.text.utf8 import begins_character
from craft_jax.text.vocabulary import Vocabulary
from craft_jax.types import Params

# The logarithms of the highest probabilities, falling, and whose they are.
Top = tuple[Float[Array, 'B K'], Int[Array, 'B K']]
TopOfAll = tuple[Float[Array, 'B C K'], Int[Array, 'B C K']]


@flax.struct.dataclass
class Slots:
  """Texts being written.

  Attributes:
    cache: what the model has read of each window.
    last_B: the newest symbol, which the model reads next.
    segment_B: document number of what was read, counted in the window.
    position_B: symbols of the whole text so far, the newest included.
    chars_B: characters written so far.
    state_B: of the constraint, in the tables.
    left_B: symbols that may still be written.
    settings: how each row chooses.
  """

  cache: Cache
  last_B: Int[Array, 'B']
  segment_B: Int[Array, 'B']
  position_B: Int[Array, 'B']
  chars_B: Int[Array, 'B']
  state_B: Int[Array, 'B']
  left_B: Int[Array, 'B']
  settings: RowSettings


@functools.partial(jax.jit, static_argnames=('model',))
def open_slots(
  model: Decoder,
  position_B: Int[Array, 'B'],
  state_B: Int[Array, 'B'],
  left_B: Int[Array, 'B'],
  settings: dict[str, Array],
  seed_B: UInt[Array, 'B'],
  row_B: UInt[Array, 'B'],
) -> Slots:
  """Slots that have read nothing; the key of a row is `fold_in(seed, row)`.

  Args:
    model: the model.
    position_B: symbols of each prompt.
    state_B: where its constraint begins.
    left_B: symbols it may write.
    settings: the fields of `RowSettings` but for the keys.
    seed_B: of each row.
    row_B: numbers of the rows.
  """
  B = position_B.shape[0]
  key_B = jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.key)(seed_B), row_B)
  return Slots(
    cache=model.init_cache(B, model.cfg.context),
    last_B=jnp.zeros(B, jnp.int32),
    segment_B=jnp.zeros(B, jnp.int32),
    position_B=position_B,
    chars_B=jnp.zeros(B, jnp.int32),
    state_B=state_B,
    left_B=left_B,
    settings=RowSettings(key_B=key_B, **settings),
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
  tables: Tables,
  slots: Slots,
  live_B: Bool[Array, 'B'],
  num_top: int = 0,
) -> tuple[Slots, Int[Array, 'B'], Float[Array, 'B'], Top]:
  """Reads the newest symbol of each live row and chooses the one after it.

  A live row must have room in its cache. Pure; PAD for rows not live. Then come
  the logarithm of the probability that the model gave the symbol, before
  anything was added, forbidden or cut, and the `num_top` highest of the same.
  """
  settings = slots.settings
  segment_B = slots.segment_B + (slots.last_B == vocabulary.bos)
  cache, logits_BTV = model.extend(
    params,
    slots.cache,
    slots.last_B[:, None],
    live_B.astype(jnp.int32),
    segment_B[:, None],
  )
  log_BV = jax.nn.log_softmax(logits_BTV[:, 0], axis=-1)
  logits_BV = logits_BTV[:, 0] + settings.bias_BV
  logits_BV = jax.lax.cond(
    jnp.any(
      (settings.repetition_B != 1)
      | (settings.presence_B != 0)
      | (settings.frequency_B != 0)
    ),
    lambda: penalize(logits_BV, settings, cache.symbol_BS, cache.length_B),
    lambda: logits_BV,
  )
  may_end_B = settings.end_B & (slots.chars_B >= settings.min_chars_B)
  logits_BV, next_BV = restrict(
    tables, vocabulary, logits_BV, slots.state_B, slots.left_B, may_end_B
  )
  token_B = choose(logits_BV, settings, slots.position_B)
  row_B = jnp.arange(len(token_B))
  id_V = jnp.arange(vocabulary.size)
  begins_V = jnp.ones_like(id_V)
  if vocabulary.kind == 'byte':
    begins_V = begins_character(id_V)
  writes_B = live_B & (token_B < vocabulary.num_symbols)
  slots = dataclasses.replace(
    slots,
    cache=cache,
    last_B=jnp.where(live_B, token_B, slots.last_B),
    segment_B=jnp.where(live_B, segment_B, slots.segment_B),
    position_B=slots.position_B + live_B,
    chars_B=slots.chars_B + (writes_B & begins_V[token_B]),
    state_B=jnp.where(writes_B, next_BV[row_B, token_B], slots.state_B),
    left_B=slots.left_B - writes_B,
  )
  token_B = jnp.where(live_B, token_B, vocabulary.pad)
  return slots, token_B, log_BV[row_B, token_B], _top(log_BV, num_top)


def _top(log_BV: Float[Array, 'B V'], num_top: int) -> Top:
  if not num_top:  # not even a search for none
    return log_BV[:, :0], jnp.zeros((len(log_BV), 0), jnp.int32)
  top_BK, id_BK = jax.lax.top_k(log_BV, num_top)
  return top_BK, id_BK


@functools.partial(
  jax.jit,
  static_argnames=('model', 'vocabulary', 'capacity', 'num_top'),
  donate_argnames='slots',
)
def decode(
  model: Decoder,
  vocabulary: Vocabulary,
  params: Params,
  tables: Tables,
  slots: Slots,
  live_B: Bool[Array, 'B'],
  num_steps: Int[Array, ''],
  capacity: int,
  num_top: int = 0,
) -> tuple[Slots, Int[Array, 'B C'], Float[Array, 'B C'], TopOfAll]:
  """Writes up to `num_steps` symbols per live row in one dispatch.

  The trip count is traced, so any number of steps is one executable.

  Args:
    model: the model.
    vocabulary: its symbols.
    params: its parameters.
    tables: the constraints.
    slots: donated.
    live_B: rows that write; each has room for `num_steps` symbols.
    num_steps: at most `capacity`.
    capacity: C, columns of the answer.
    num_top: K, most likely symbols to report beside each.

  Returns:
    The slots, the symbols (an end is the last of its row, PAD after it), the
    logarithms of their probabilities, and those of the K most likely symbols
    with their ids, see `step`.
  """
  out_BC = jnp.full((live_B.shape[0], capacity), vocabulary.pad, jnp.int32)
  log_BC = jnp.zeros(out_BC.shape)
  shape = (*out_BC.shape, num_top)
  top_BCK = (jnp.zeros(shape), jnp.zeros(shape, jnp.int32))

  def more(carry):
    i, _, live_B, *_ = carry
    return (i < num_steps) & jnp.any(live_B)

  def body(carry):
    i, slots, live_B, out_BC, log_BC, top_BCK = carry
    slots, token_B, log_B, top_BK = step(
      model, vocabulary, params, tables, slots, live_B, num_top
    )
    out_BC = jax.lax.dynamic_update_slice(out_BC, token_B[:, None], (0, i))
    log_BC = jax.lax.dynamic_update_slice(log_BC, log_B[:, None], (0, i))
    top_BCK = jax.tree.map(
      lambda all_BCK, new_BK: jax.lax.dynamic_update_slice(
        all_BCK, new_BK[:, None], (0, i, 0)
      ),
      top_BCK,
      top_BK,
    )
    ended_B = (token_B == vocabulary.bos) | (token_B == vocabulary.eos)
    return i + 1, slots, live_B & ~ended_B, out_BC, log_BC, top_BCK

  start = (jnp.zeros((), jnp.int32), slots, live_B, out_BC, log_BC, top_BCK)
  _, slots, _, out_BC, log_BC, top_BCK = jax.lax.while_loop(more, body, start)
  return slots, out_BC, log_BC, top_BCK
