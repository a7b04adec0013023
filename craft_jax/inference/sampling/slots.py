"""The device side of sampling: slots, reading into them, a step of them.

A slot is a row of every array below. Its output depends on its own row alone,
up to the rounding of products of other shapes (docs/sampling.md).
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from craft_jax.data.text.utf8 import begins_character
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling.constraint_tables import Tables, restrict
from craft_jax.inference.sampling.logits import RowSettings, choose, penalize
from craft_jax.inference.sampling.speculation import FIRST_ACCEPTANCE
from craft_jax.model.cache import Cache
from craft_jax.model.protocol import Model
from craft_jax.runtime import keys
from craft_jax.types import Params

# The logarithms of the highest probabilities, falling, and whose they are.
Top = tuple[Float[Array, 'B K'], Int[Array, 'B K']]


@flax.struct.dataclass
class Slots:
  """Texts being written.

  Attributes:
    cache: what the model has read of each window.
    last_B: the newest token, which the model reads next.
    segment_B: document number of what was read, counted in the window.
    position_B: tokens of the whole text so far, the newest included.
    chars_B: characters written so far.
    state_B: of the constraint, in the tables.
    left_B: tokens that may still be written.
    acceptance_B: share of the drafts that were accepted lately.
    settings: how each row chooses.
  """

  cache: Cache
  last_B: Int[Array, 'B']
  segment_B: Int[Array, 'B']
  position_B: Int[Array, 'B']
  chars_B: Int[Array, 'B']
  state_B: Int[Array, 'B']
  left_B: Int[Array, 'B']
  acceptance_B: Float[Array, 'B']
  settings: RowSettings


@functools.partial(jax.jit, static_argnames=('model',))
def open_slots(
  model: Model,
  position_B: Int[Array, 'B'],
  state_B: Int[Array, 'B'],
  left_B: Int[Array, 'B'],
  settings: dict[str, Any],
  seed_B: UInt[Array, 'B'],
  row_B: UInt[Array, 'B'],
) -> Slots:
  """Slots that have read nothing; the key of a row is `fold_in(seed, row)`.

  Args:
    model: the model.
    position_B: tokens of each prompt.
    state_B: where its constraint begins.
    left_B: tokens it may write.
    settings: the fields of `RowSettings` but for the keys.
    seed_B: of each row.
    row_B: numbers of the rows.
  """
  B = position_B.shape[0]
  key_B = jax.vmap(jax.random.fold_in)(jax.vmap(keys.from_seed)(seed_B), row_B)
  return Slots(
    cache=model.init_cache(B, model.context),
    last_B=jnp.zeros(B, jnp.int32),
    segment_B=jnp.zeros(B, jnp.int32),
    position_B=position_B,
    chars_B=jnp.zeros(B, jnp.int32),
    state_B=state_B,
    left_B=left_B,
    acceptance_B=jnp.full(B, FIRST_ACCEPTANCE, jnp.float32),
    settings=RowSettings(key_B=key_B, **settings),
  )


@functools.partial(
  jax.jit, static_argnames=('model', 'vocabulary'), donate_argnames='slots'
)
def read(
  model: Model,
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
    vocabulary: its tokens.
    params: its parameters.
    slots: donated.
    window_BT: the window without its newest token, padded to any T.
    length_B: tokens of the row in `window_BT`.
    last_B: the newest token.
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
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  tables: Tables,
  slots: Slots,
  live_B: Bool[Array, 'B'],
  num_top: int = 0,
  depth: int | None = None,
) -> tuple[Slots, Int[Array, 'B'], Float[Array, 'B'], Top]:
  """Reads the newest token of each live row and chooses the one after it.

  A live row must have room in its cache. Pure; PAD for rows not live. Then come
  the logarithm of the probability that the model gave the token, before
  anything was added, forbidden or cut, and the `num_top` highest of the same.
  `depth` is that of `Model.extend`.
  """
  slots, logits_BTV = extend(
    model,
    vocabulary,
    params,
    slots,
    slots.last_B[:, None],
    live_B.astype(jnp.int32),
    depth,
  )
  length_B = slots.cache.length_B
  return follow(
    vocabulary, tables, slots, logits_BTV[:, 0], length_B, live_B, num_top
  )


def extend(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  slots: Slots,
  x_BT: Int[Array, 'B T'],
  length_B: Int[Array, 'B'],
  depth: int | None = None,
) -> tuple[Slots, Float[Array, 'B T V']]:
  """`Model.extend` of slots by tokens of which the newest is the first.

  None of the others begins a document.
  """
  segment_B = slots.segment_B + (slots.last_B == vocabulary.bos)
  segment_BT = jnp.broadcast_to(segment_B[:, None], x_BT.shape)
  cache, logits_BTV = model.extend(
    params, slots.cache, x_BT, length_B, segment_BT, depth
  )
  segment_B = jnp.where(length_B > 0, segment_B, slots.segment_B)
  slots = dataclasses.replace(slots, cache=cache, segment_B=segment_B)
  return slots, logits_BTV


def follow(
  vocabulary: Vocabulary,
  tables: Tables,
  slots: Slots,
  logits_BV: Float[Array, 'B V'],
  length_B: Int[Array, 'B'],
  live_B: Bool[Array, 'B'],
  num_top: int,
) -> tuple[Slots, Int[Array, 'B'], Float[Array, 'B'], Top]:
  """Chooses a token of each live row.

  Args:
    vocabulary: its tokens.
    tables: the constraints.
    slots: with a cache that has read the text before it.
    logits_BV: of the model.
    length_B: tokens of the cache that are that text.
    live_B: the others stay as they are.
    num_top: most likely tokens to report.

  Returns:
    As `step`.
  """
  settings, option = slots.settings, slots.settings.option
  log_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  logits_BV = logits_BV + settings.bias_BV
  logits_BV = jax.lax.cond(
    jnp.any(
      (option['repetition_penalty'] != 1)
      | (option['presence_penalty'] != 0)
      | (option['frequency_penalty'] != 0)
    ),
    lambda: penalize(logits_BV, settings, slots.cache.token_BS, length_B),
    lambda: logits_BV,
  )
  may_end_B = settings.end_B & (slots.chars_B >= option['min_chars'])
  logits_BV, next_BV = restrict(
    tables, vocabulary, logits_BV, slots.state_B, slots.left_B, may_end_B
  )
  token_B = choose(logits_BV, settings, slots.position_B)
  row_B = jnp.arange(len(token_B))
  id_V = jnp.arange(vocabulary.size)
  begins_V = jnp.ones_like(id_V)
  if vocabulary.kind == 'byte':
    begins_V = begins_character(id_V)
  writes_B = live_B & (token_B < vocabulary.num_text_tokens)
  slots = dataclasses.replace(
    slots,
    last_B=jnp.where(live_B, token_B, slots.last_B),
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
