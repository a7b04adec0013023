"""Many tokens per dispatch: steps of one, and passes over drafts."""

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling import speculation as drafts_lib
from craft_jax.inference.sampling.constraint_tables import Tables
from craft_jax.inference.sampling.slots import Slots, Top, extend, follow, step
from craft_jax.inference.sampling.speculation import Drafts
from craft_jax.model.protocol import Model
from craft_jax.types import Params


@flax.struct.dataclass
class Written:
  """What a dispatch wrote.

  Attributes:
    count_B: tokens of each row; an end is the last of its row.
    token_BC: the tokens, PAD after them.
    log_BC: the logarithm of the probability that the model gave each, before
      anything was added, forbidden or cut.
    top_BCK: the K highest of the same, falling.
    top_id_BCK: whose they are.
  """

  count_B: Int[Array, 'B']
  token_BC: Int[Array, 'B C']
  log_BC: Float[Array, 'B C']
  top_BCK: Float[Array, 'B C K']
  top_id_BCK: Int[Array, 'B C K']


# The slots, the rows that go on, and what was written.
_Loop = tuple[Slots, Bool[Array, 'B'], Written]


class _Given(NamedTuple):
  """What stays the same through a dispatch: arguments of `decode`."""

  model: Model
  vocabulary: Vocabulary
  params: Params
  tables: Tables
  limit_B: Int[Array, 'B']
  num_top: int
  drafts: Drafts | None

  def step(
    self, slots: Slots, live_B: Bool[Array, 'B'], **more: int
  ) -> tuple[Slots, Int[Array, 'B'], Float[Array, 'B'], Top]:
    """`slots.step`."""
    return step(
      self.model, self.vocabulary, self.params, self.tables, slots, live_B,
      **more,
    )  # fmt: skip

  def read_B(
    self, slots: Slots, written: Written, count_B: Int[Array, 'B']
  ) -> Int[Array, 'B']:
    """Tokens that a row reads with so many drafts, and writes at most."""
    read_B = jnp.where(count_B > 0, count_B + 1, 0)
    read_B = jnp.minimum(read_B, self.limit_B - written.count_B)
    return jnp.minimum(read_B, _room(slots) - slots.cache.length_B)

  def still(
    self, slots: Slots, written: Written, live_B: Bool[Array, 'B']
  ) -> Bool[Array, 'B']:
    """Which of the live rows go on."""
    fits_B = slots.cache.length_B < _room(slots)
    more_B = written.count_B < self.limit_B
    return live_B & ~slots.ended_B & more_B & fits_B


@functools.partial(
  jax.jit,
  static_argnames=('model', 'vocabulary', 'capacity', 'num_top', 'drafts'),
  donate_argnames='slots',
)
def decode(
  model: Model,
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
  """Writes into every row that goes on: it has a limit, room and no end yet.

  The trip count is traced, so any number of steps is one executable.

  Args:
    model: the model.
    vocabulary: its tokens.
    params: its parameters.
    tables: the constraints.
    slots: donated.
    limit_B: tokens that each row writes at most, itself at most `capacity`; 0
      leaves it alone.
    num_steps: turns, each of which writes at least one token into every row
      that still goes on.
    capacity: C, columns of the answer.
    num_top: K, most likely tokens to report beside each.
    drafts: which drafts are read ahead; None is none.

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
  given = _Given(model, vocabulary, params, tables, limit_B, num_top, drafts)
  turn = _narrow if drafts is None else _turn

  def more(carry):
    i, _, live_B, _ = carry
    return (i < num_steps) & jnp.any(live_B)

  def body(carry):
    i, *loop = carry
    return i + 1, *turn(given, tuple(loop))

  live_B = given.still(slots, written, jnp.ones(shape[0], bool))
  start = (jnp.zeros((), jnp.int32), slots, live_B, written)
  _, slots, _, written = jax.lax.while_loop(more, body, start)
  return slots, written


def _room(slots: Slots) -> int:
  return slots.cache.token_BS.shape[1]


def _narrow(given: _Given, loop: _Loop) -> _Loop:
  """One token of each live row."""
  slots, live_B, written = loop
  slots, *new = given.step(slots, live_B, num_top=given.num_top)
  written = _append(written, live_B, *new)
  return slots, given.still(slots, written, live_B), written


class _Looked(NamedTuple):
  """A loop with drafts: whose there is no doubt of, and if a pass pays."""

  loop: _Loop
  draft_BD: Int[Array, 'B D']
  forced_B: Bool[Array, 'B']
  pays: Bool[Array, '']

  @property
  def count_B(self) -> Int[Array, 'B']:
    """Drafts of the live rows."""
    return jnp.where(self.loop[1], drafts_lib.counts(self.draft_BD), 0)


def _turn(given: _Given, loop: _Loop) -> _Loop:
  """Passes over drafts while they pay, then a step of every row.

  A row without drafts takes the same steps as if nobody had any.
  """

  def wide(looked: _Looked) -> _Looked:
    slots, live_B, written = looked.loop
    count_B = looked.count_B
    read_B = given.read_B(slots, written, count_B)
    slots, after = _verify(given, slots, written, looked.draft_BD, read_B)
    slots = _learned(slots, written, after, looked)
    live_B = given.still(slots, after, live_B)
    return _look(given, (slots, live_B, after))

  looked = jax.lax.while_loop(
    lambda looked: looked.pays, wide, _look(given, loop)
  )
  slots, live_B, after = _narrow(given, looked.loop)
  return _learned(slots, looked.loop[2], after, looked), live_B, after


def _look(given: _Given, loop: _Loop) -> _Looked:
  slots, live_B, written = loop
  drafts = given.drafts
  assert drafts is not None
  slots, draft_BD, forced_B = _draft(given, slots, live_B)
  acceptance_B = jnp.where(forced_B, 1.0, slots.acceptance_B)
  expected_B = jnp.where(live_B, drafts_lib.expected(draft_BD, acceptance_B), 0)
  platform = given.model.policy.platform.name
  cost = drafts.cost or drafts_lib.pass_cost(len(live_B), platform)
  pays = jnp.sum(expected_B) > cost * jnp.sum(live_B)
  return _Looked((slots, live_B, written), draft_BD, forced_B, pays)


def _learned(slots, before, after, looked):
  """The slots, knowing of each row's first draft whether it was accepted."""
  count_B = before.count_B
  first_B = after.token_BC[jnp.arange(len(count_B)), count_B]
  acceptance_B = drafts_lib.learned(
    slots.acceptance_B, first_B == looked.draft_BD[:, 0]
  )
  unsure_B = (looked.count_B > 0) & ~looked.forced_B
  acceptance_B = jnp.where(unsure_B, acceptance_B, slots.acceptance_B)
  return dataclasses.replace(slots, acceptance_B=acceptance_B)


def _append(written, live_B, token_B, log_B, top) -> Written:
  """One token more of each live row."""
  row_B = jnp.arange(len(live_B))
  at_B = jnp.where(live_B, written.count_B, written.token_BC.shape[1])

  def put(all_BC, new_B):
    return all_BC.at[row_B, at_B].set(new_B, mode='drop')

  return Written(
    written.count_B + live_B,
    put(written.token_BC, token_B),
    put(written.log_BC, log_B),
    put(written.top_BCK, top[0]),
    put(written.top_id_BCK, top[1]),
  )


def _draft(given, slots, live_B):
  """The drafts of the rows, -1 for none, and whose there is no doubt of.

  The cache of the slots may change past its length.
  """
  drafts, tables, cache = given.drafts, given.tables, slots.cache
  none_BD = jnp.full((len(live_B), drafts.length), -1, jnp.int32)
  draft_BD, forced_B = none_BD, jnp.zeros(len(live_B), bool)
  if drafts.match:
    draft_BD = drafts_lib.lookup(
      cache.token_BS, cache.length_B, slots.last_B, drafts.match,
      drafts.length, given.vocabulary.num_text_tokens,
    )  # fmt: skip
  if drafts.layers:
    slots, draft_BD = _write_ahead(given, slots, live_B)
  if drafts.forced:
    forced_BD = jax.lax.cond(
      jnp.any(live_B & (tables.forced_R[slots.state_B] >= 0)),
      lambda: drafts_lib.forced(tables, slots.state_B, drafts.length),
      lambda: none_BD,
    )
    forced_B = forced_BD[:, 0] >= 0
    draft_BD = jnp.where(forced_B[:, None], forced_BD, draft_BD)
  return slots, draft_BD, forced_B


def _write_ahead(given, slots, live_B):
  """What the first layers would write; the slots get only their cache."""

  def ahead(carry, _):
    slots, live_B = carry
    slots, token_B, *_ = given.step(slots, live_B, depth=given.drafts.layers)
    live_B &= token_B < given.vocabulary.num_text_tokens
    draft_B = jnp.where(live_B, token_B, -1)
    return (slots, live_B & (slots.cache.length_B < _room(slots))), draft_B

  (after, _), draft_DB = jax.lax.scan(
    ahead, (slots, live_B), length=given.drafts.length
  )
  cache = dataclasses.replace(after.cache, length_B=slots.cache.length_B)
  return dataclasses.replace(slots, cache=cache), draft_DB.T


def _verify(given, slots, written, draft_BD, read_B):
  """Reads the newest token and drafts after it, and writes what follows.

  Those are the accepted drafts, and then one token more. `read_B` is how many
  tokens a row reads, and the most that it writes.
  """
  model, vocabulary, params, tables, *_ = given
  start_B = slots.cache.length_B
  x_BT = jnp.concatenate(
    [slots.last_B[:, None], jnp.maximum(draft_BD, 0)], axis=1
  )
  slots, logits_BTV = extend(model, vocabulary, params, slots, x_BT, read_B)

  def body(carry):
    i, slots, live_B, written = carry
    slots, token_B, *new = follow(
      vocabulary, tables, slots, logits_BTV[:, i], start_B + i + 1, live_B,
      given.num_top,
    )  # fmt: skip
    written = _append(written, live_B, token_B, *new)
    # Past the last draft nothing is read, so the row is done by then anyway.
    accepted_B = token_B == draft_BD[:, jnp.minimum(i, draft_BD.shape[1] - 1)]
    return i + 1, slots, live_B & accepted_B & (i + 1 < read_B), written

  start = (jnp.zeros((), jnp.int32), slots, read_B > 0, written)
  _, slots, _, after = jax.lax.while_loop(
    lambda carry: jnp.any(carry[2]), body, start
  )
  length_B = start_B + after.count_B - written.count_B
  cache = dataclasses.replace(slots.cache, length_B=length_B)
  return dataclasses.replace(slots, cache=cache), after
