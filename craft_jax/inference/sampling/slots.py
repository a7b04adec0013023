"""The device side of sampling: slots, texts put into them, a step of them.

A slot is a row of every array below. Its output depends on its own row alone,
up to the rounding of products of other shapes (docs/sampling.md).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from craft_jax.data.text.utf8 import begins_character
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling.constraint_tables import Tables, restrict
from craft_jax.inference.sampling.logits import RowSettings, choose, penalize
from craft_jax.inference.sampling.options import SLOTS
from craft_jax.inference.sampling.output import setting_arrays
from craft_jax.inference.sampling.prefill import Prefix, read_chunk
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import FIRST_ACCEPTANCE
from craft_jax.model.cache import Cache
from craft_jax.model.protocol import Model
from craft_jax.runtime import keys
from craft_jax.types import Params

# The logarithms of the highest probabilities, falling, and whose they are.
Top = tuple[Float[Array, 'B K'], Int[Array, 'B K']]

# What a text has beside its settings, its key as two numbers.
_FIELDS = ('last', 'position', 'chars', 'state', 'left')
_KEY = ('seed', 'sample')
# Options of one number each travel in two arrays: to the device an array costs
# about as much as a kilobyte more in it.
_FLOATS = tuple(name for name, dtype in SLOTS.items() if dtype == 'float32')
_INTS = tuple(name for name in SLOTS if name not in _FLOATS)
# The row of a slot that has no text.
EMPTY = dict.fromkeys((*_FIELDS, *_KEY), 0)


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
    ended_B: whether the newest token has ended the text.
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
  ended_B: Bool[Array, 'B']
  acceptance_B: Float[Array, 'B']
  settings: RowSettings


class Packed(NamedTuple):
  """Texts in few arrays, on their way to the device; see `pack`.

  Attributes:
    int_WB: int32, whole numbers of each row.
    float_RB: float32, the other numbers.
    bias_BV: float32, see `RowSettings`.
    end_B: bool, see `RowSettings`.
  """

  int_WB: Any
  float_RB: Any
  bias_BV: Any
  end_B: Any


def pack(
  rows: Sequence[Mapping[str, int]],
  settings: Sequence[SampleSettings],
  vocabulary_size: int,
) -> Packed:
  """The texts of some rows as NumPy arrays.

  Args:
    rows: of each the fields of `Slots` that the host knows, by their names
      without the dim, and `seed` and `sample`, of which its key is
      `fold_in(key(seed), sample)`.
    settings: of each.
    vocabulary_size: V.
  """
  columns = setting_arrays(settings, vocabulary_size)
  option = columns.pop('option')
  key_WB = np.array([[row[n] for row in rows] for n in _KEY], np.uint32)
  ints = [[row[name] for row in rows] for name in _FIELDS]
  ints += [*key_WB.view(np.int32), *(option[name] for name in _INTS)]
  floats = [option[name] for name in _FLOATS]
  return Packed(np.array(ints, np.int32), np.array(floats), **columns)


def _fields(packed: Packed) -> dict[str, Any]:
  """The fields of `Slots` but for what the model has read."""
  field = dict(zip((*_FIELDS, *_KEY, *_INTS), packed.int_WB, strict=True))
  field |= dict(zip(_FLOATS, packed.float_RB, strict=True))
  seed_B, sample_B = (
    jax.lax.bitcast_convert_type(field[name], jnp.uint32) for name in _KEY
  )
  key_B = jax.vmap(jax.random.fold_in)(
    jax.vmap(keys.from_seed)(seed_B), sample_B
  )
  option = {name: field[name].astype(dtype) for name, dtype in SLOTS.items()}
  return {
    **{f'{name}_B': field[name] for name in _FIELDS},
    'ended_B': jnp.zeros(len(key_B), bool),
    'acceptance_B': jnp.full(len(key_B), FIRST_ACCEPTANCE, jnp.float32),
    'settings': RowSettings(option, packed.bias_BV, packed.end_B, key_B),
  }


@functools.partial(
  jax.jit, static_argnames=('model', 'vocabulary_size', 'slots')
)
def open_slots(
  model: Model, vocabulary_size: int, slots: int, zero: Int[Array, '']
) -> Slots:
  """Slots without texts.

  Args:
    model: the model.
    vocabulary_size: V.
    slots: B.
    zero: 0, on the device that is to have them.
  """
  B = slots
  packed = Packed(
    jnp.zeros((len(_FIELDS) + len(_KEY) + len(_INTS), B), jnp.int32) + zero,
    jnp.zeros((len(_FLOATS), B)),
    jnp.zeros((B, vocabulary_size)),
    jnp.zeros(B, bool),
  )
  cache, segment_B = model.init_cache(B, model.context), jnp.zeros(B, jnp.int32)
  return Slots(cache=cache, segment_B=segment_B, **_fields(packed))


@functools.partial(jax.jit, static_argnames=('model', 'vocabulary'))
def open_filled(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  packed: Packed,
  window_BT: Int[Array, 'B T'],
  length_B: Int[Array, 'B'],
) -> Slots:
  """Slots with a text in each, whose windows are read together.

  Args:
    model: the model.
    vocabulary: its tokens.
    params: its parameters.
    packed: the texts.
    window_BT: the windows without their newest tokens, padded to any T.
    length_B: tokens of each in `window_BT`.
  """
  B = len(length_B)
  empty = Prefix(model.init_cache(B, model.context), jnp.zeros(B, jnp.int32))
  prefix = read_chunk(model, vocabulary, params, empty, window_BT, length_B)
  return Slots(
    cache=prefix.cache, segment_B=prefix.segment_B, **_fields(packed)
  )


@functools.partial(jax.jit, donate_argnames='slots')
def place(
  slots: Slots, prefix: Prefix, packed: Packed, slot: Int[Array, '']
) -> Slots:
  """The slots with a text in one of them; the number is traced.

  Args:
    slots: donated.
    prefix: what the model has read of its window.
    packed: of one row.
    slot: where to.
  """

  def put(all_B, one_B):
    if not jax.dtypes.issubdtype(all_B.dtype, jax.dtypes.prng_key):
      one_B = one_B.astype(all_B.dtype)
    return jax.lax.dynamic_update_slice_in_dim(all_B, one_B, slot, 0)

  one = Slots(cache=prefix.cache, segment_B=prefix.segment_B, **_fields(packed))
  return jax.tree.map(put, slots, one)


@functools.partial(
  jax.jit, static_argnames=('model', 'vocabulary'), donate_argnames='slots'
)
def fill(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  slots: Slots,
  packed: Packed,
  window_BT: Int[Array, 'B T'],
  length_B: Int[Array, 'B'],
  which_B: Bool[Array, 'B'],
) -> Slots:
  """Puts texts into the slots of `which_B` and reads their windows together.

  Args:
    model: the model.
    vocabulary: its tokens.
    params: its parameters.
    slots: donated.
    packed: of all slots.
    window_BT: the windows without their newest tokens, padded to any T.
    length_B: tokens of each in `window_BT`; 0 outside `which_B`.
    which_B: the other slots stay as they are.
  """
  # The others read nothing: what is written past their length is as unspecified
  # as what it replaces.
  kept_B = jnp.where(which_B, 0, slots.cache.length_B)
  before = Prefix(
    dataclasses.replace(slots.cache, length_B=kept_B),
    jnp.where(which_B, 0, slots.segment_B),
  )
  prefix = read_chunk(model, vocabulary, params, before, window_BT, length_B)

  def put(new, old):
    return jnp.where(which_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)

  new = {
    name: jax.tree.map(put, field, getattr(slots, name))
    for name, field in _fields(packed).items()
  }
  return dataclasses.replace(
    slots, cache=prefix.cache, segment_B=prefix.segment_B, **new
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
    ended_B=slots.ended_B | (live_B & ~writes_B),
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
