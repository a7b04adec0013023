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
from craft_jax.sample import drafts as drafts_lib
from craft_jax.sample.choose import RowSettings, choose, penalize
from craft_jax.sample.drafts import Drafts
from craft_jax.sample.tables import Tables, restrict
from craft_jax.text.utf8 import begins_character
from craft_jax.text.vocabulary import Vocabulary
from craft_jax.types import Params

# The logarithms of the highest probabilities, falling, and whose they are.
Top = tuple[Float[Array, 'B K'], Int[Array, 'B K']]
TopOfAll = tuple[Float[Array, 'B C K'], Int[Array, 'B C K']]
# The slots, the rows that go on, and what was written.
_Loop = tuple['Slots', Bool[Array, 'B'], 'Written']


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
    hit_B: share of the guesses that were met lately.
    settings: how each row chooses.
  """

  cache: Cache
  last_B: Int[Array, 'B']
  segment_B: Int[Array, 'B']
  position_B: Int[Array, 'B']
  chars_B: Int[Array, 'B']
  state_B: Int[Array, 'B']
  left_B: Int[Array, 'B']
  hit_B: Float[Array, 'B']
  settings: RowSettings


@flax.struct.dataclass
class Written:
  """What a dispatch wrote.

  Attributes:
    count_B: symbols of each row; an end is the last of its row.
    symbol_BC: the symbols, PAD after them.
    log_BC: the logarithm of the probability that the model gave each, before
      anything was added, forbidden or cut.
    top_BCK: the K highest of the same, falling.
    top_id_BCK: whose they are.
  """

  count_B: Int[Array, 'B']
  symbol_BC: Int[Array, 'B C']
  log_BC: Float[Array, 'B C']
  top_BCK: Float[Array, 'B C K']
  top_id_BCK: Int[Array, 'B C K']


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
    hit_B=jnp.full(B, drafts_lib.FIRST_HIT, jnp.float32),
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
  depth: int | None = None,
) -> tuple[Slots, Int[Array, 'B'], Float[Array, 'B'], Top]:
  """Reads the newest symbol of each live row and chooses the one after it.

  A live row must have room in its cache. Pure; PAD for rows not live. Then come
  the logarithm of the probability that the model gave the symbol, before
  anything was added, forbidden or cut, and the `num_top` highest of the same.
  `depth` is that of `Decoder.extend`.
  """
  slots, logits_BTV = _extend(
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


def _extend(model, vocabulary, params, slots, x_BT, length_B, depth=None):
  """Reads symbols of one document each; the first is the newest written."""
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
  """Chooses a symbol of each live row.

  Args:
    vocabulary: its symbols.
    tables: the constraints.
    slots: with a cache that has read the text before it.
    logits_BV: of the model.
    length_B: symbols of the cache that are that text.
    live_B: the others stay as they are.
    num_top: most likely symbols to report.

  Returns:
    As `step`.
  """
  settings = slots.settings
  log_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  logits_BV = logits_BV + settings.bias_BV
  logits_BV = jax.lax.cond(
    jnp.any(
      (settings.repetition_B != 1)
      | (settings.presence_B != 0)
      | (settings.frequency_B != 0)
    ),
    lambda: penalize(logits_BV, settings, slots.cache.symbol_BS, length_B),
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


@functools.partial(
  jax.jit,
  static_argnames=('model', 'vocabulary', 'capacity', 'num_top', 'drafts'),
  donate_argnames='slots',
)
def decode(
  model: Decoder,
  vocabulary: Vocabulary,
  params: Params,
  tables: Tables,
  slots: Slots,
  limit_B: Int[Array, 'B'],
  num_steps: Int[Array, ''],
  capacity: int,
  num_top: int = 0,
  drafts: Drafts | None = None,
) -> tuple[Slots, Written]:
  """Writes into every row that has a limit and room in its cache.

  The trip count is traced, so any number of steps is one executable.

  Args:
    model: the model.
    vocabulary: its symbols.
    params: its parameters.
    tables: the constraints.
    slots: donated.
    limit_B: symbols that each row writes at most, itself at most `capacity`; 0
      leaves it alone.
    num_steps: turns, each of which writes at least one symbol into every row
      that still goes on.
    capacity: C, columns of the answer.
    num_top: K, most likely symbols to report beside each.
    drafts: which guesses are read ahead; None is none.

  Returns:
    The slots, and what was written.
  """
  shape = (limit_B.shape[0], capacity)
  written = Written(
    jnp.zeros_like(limit_B),
    jnp.full(shape, vocabulary.pad, jnp.int32),
    jnp.zeros(shape),
    jnp.zeros((*shape, num_top)),
    jnp.zeros((*shape, num_top), jnp.int32),
  )
  room = slots.cache.symbol_BS.shape[1]

  def on(slots, written, live_B, wrote_B):
    """Which of the live rows go on."""
    last_B = slots.last_B
    ended_B = (last_B == vocabulary.bos) | (last_B == vocabulary.eos)
    return (
      live_B
      & ~(wrote_B & ended_B)
      & (written.count_B < limit_B)
      & (slots.cache.length_B < room)
    )

  def narrow(carry: _Loop) -> _Loop:
    slots, live_B, written = carry
    slots, *new = step(
      model, vocabulary, params, tables, slots, live_B, num_top
    )
    written = _append(written, live_B, *new)
    return slots, on(slots, written, live_B, live_B), written

  def turn(carry):
    i, *loop = carry
    if drafts is None:
      return i + 1, *narrow(tuple(loop))
    slots, live_B, written = loop
    slots, guess_BD, forced_B = _guess(
      model, vocabulary, params, tables, slots, live_B, drafts
    )
    count_B = jnp.where(live_B, drafts_lib.counts(guess_BD), 0)
    some_B = count_B > 0
    expected_B = drafts_lib.expected(
      guess_BD, jnp.where(forced_B, 1.0, slots.hit_B)
    )
    cost = drafts.cost or drafts_lib.pass_cost(len(live_B))
    pays = jnp.sum(jnp.where(some_B, expected_B, 0)) > cost * jnp.sum(live_B)

    def wide(carry: _Loop) -> _Loop:
      slots, live_B, written = carry
      read_B = jnp.where(some_B, count_B + 1, 0)
      read_B = jnp.minimum(read_B, limit_B - written.count_B)
      read_B = jnp.minimum(read_B, room - slots.cache.length_B)
      slots, written = _verify(
        model, vocabulary, params, tables, slots, written, guess_BD, read_B,
        num_top,
      )  # fmt: skip
      return slots, on(slots, written, live_B, some_B), written

    carry = jax.lax.cond(
      pays, wide, lambda carry: carry, (slots, live_B, written)
    )
    # A row without guesses takes the same step as if nobody had any.
    rest = ~pays | jnp.any(live_B & ~some_B)
    carry = jax.lax.cond(rest, narrow, lambda carry: carry, carry)
    slots, live_B, after = carry
    first_B = after.symbol_BC[jnp.arange(len(count_B)), written.count_B]
    hit_B = drafts_lib.learned(slots.hit_B, first_B == guess_BD[:, 0])
    hit_B = jnp.where(some_B & ~forced_B, hit_B, slots.hit_B)
    return i + 1, dataclasses.replace(slots, hit_B=hit_B), live_B, after

  def more(carry):
    i, _, live_B, _ = carry
    return (i < num_steps) & jnp.any(live_B)

  none_B = jnp.zeros(shape[0], bool)
  live_B = on(slots, written, ~none_B, none_B)
  start = (jnp.zeros((), jnp.int32), slots, live_B, written)
  _, slots, _, written = jax.lax.while_loop(more, turn, start)
  return slots, written


def _append(written, live_B, token_B, log_B, top) -> Written:
  """One symbol more of each live row."""
  row_B = jnp.arange(len(live_B))
  at_B = jnp.where(live_B, written.count_B, written.symbol_BC.shape[1])

  def put(all_BC, new_B):
    return all_BC.at[row_B, at_B].set(new_B, mode='drop')

  return Written(
    written.count_B + live_B,
    put(written.symbol_BC, token_B),
    put(written.log_BC, log_B),
    put(written.top_BCK, top[0]),
    put(written.top_id_BCK, top[1]),
  )


def _guess(model, vocabulary, params, tables, slots, live_B, drafts):
  """The guesses of the rows, -1 for none, and whose there is no doubt of.

  The cache of the slots may change past its length.
  """
  none_BD = jnp.full((len(live_B), drafts.length), -1, jnp.int32)
  guess_BD, forced_B = none_BD, jnp.zeros(len(live_B), bool)
  cache = slots.cache
  if drafts.match:
    guess_BD = drafts_lib.lookup(
      cache.symbol_BS, cache.length_B, slots.last_B, drafts.match,
      drafts.length, vocabulary.num_symbols,
    )  # fmt: skip
  if drafts.layers:
    slots, guess_BD = _write_ahead(
      model, vocabulary, params, tables, slots, live_B, drafts
    )
  if drafts.forced:
    forced_BD = jax.lax.cond(
      jnp.any(live_B & (tables.forced_R[slots.state_B] >= 0)),
      lambda: drafts_lib.forced(tables, slots.state_B, drafts.length),
      lambda: none_BD,
    )
    forced_B = forced_BD[:, 0] >= 0
    guess_BD = jnp.where(forced_B[:, None], forced_BD, guess_BD)
  return slots, guess_BD, forced_B


def _write_ahead(model, vocabulary, params, tables, slots, live_B, drafts):
  """What the first layers would write; the slots get only their cache."""
  room = slots.cache.symbol_BS.shape[1]

  def ahead(carry, _):
    slots, live_B = carry
    slots, token_B, *_ = step(
      model, vocabulary, params, tables, slots, live_B, depth=drafts.layers
    )
    live_B &= token_B < vocabulary.num_symbols
    guess_B = jnp.where(live_B, token_B, -1)
    return (slots, live_B & (slots.cache.length_B < room)), guess_B

  (after, _), guess_DB = jax.lax.scan(
    ahead, (slots, live_B), length=drafts.length
  )
  cache = dataclasses.replace(after.cache, length_B=slots.cache.length_B)
  return dataclasses.replace(slots, cache=cache), guess_DB.T


def _verify(
  model, vocabulary, params, tables, slots, written, guess_BD, read_B, num_top
):  # fmt: skip
  """Reads the newest symbol and guesses after it, and writes what follows.

  That is a guess for as long as one is met, and then one symbol more. `read_B`
  is how many symbols a row reads, and the most that it writes.
  """
  start_B = slots.cache.length_B
  x_BT = jnp.concatenate(
    [slots.last_B[:, None], jnp.maximum(guess_BD, 0)], axis=1
  )
  slots, logits_BTV = _extend(model, vocabulary, params, slots, x_BT, read_B)
  live_B = read_B > 0

  def more(carry):
    return jnp.any(carry[2])

  def body(carry):
    i, slots, live_B, written = carry
    slots, token_B, *new = follow(
      vocabulary, tables, slots, logits_BTV[:, i], start_B + i + 1, live_B,
      num_top,
    )  # fmt: skip
    written = _append(written, live_B, token_B, *new)
    # Past the last guess nothing is read, so the row is done by then anyway.
    met_B = token_B == guess_BD[:, jnp.minimum(i, guess_BD.shape[1] - 1)]
    return i + 1, slots, live_B & met_B & (i + 1 < read_B), written

  start = (jnp.zeros((), jnp.int32), slots, live_B, written)
  _, slots, _, after = jax.lax.while_loop(more, body, start)
  length_B = start_B + after.count_B - written.count_B
  cache = dataclasses.replace(slots.cache, length_B=length_B)
  return dataclasses.replace(slots, cache=cache), after
