"""Drafts of the next tokens, cheap to make and then read in one pass.

A draft never decides anything. What follows is chosen as it would have been
without one, by the same noise; an accepted draft has been read already, and the
first rejected one ends the run. So the worst a draft can do is cost time.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from craft_jax.errors import UserError
from craft_jax.inference.sampling.constraint_tables import Tables

_NONE = -1
# Tokens looked at, so that of several places the one that agrees longest wins.
_LONGEST_MATCH = 16
# Acceptance rate of a row that has had no drafts yet.
FIRST_ACCEPTANCE = 0.7
_NEWEST = 0.2  # weight of the newest draft in that rate


@dataclasses.dataclass(frozen=True)
class Drafts:
  """Where drafts come from.

  Attributes:
    length: drafts in one pass; each length is a program.
    forced: what the constraint leaves no choice of (jump-forward).
    match: at least so many tokens, the newest last, stood in the text before:
      what followed there (prompt lookup, arXiv:2304.04487); 0 is off.
    layers: that many of the first layers, with the head, write ahead
      (self-drafting, arXiv:2309.08168); 0 is off.
    cost: of a pass, in steps of one token; it is made where more is expected
      of it. 0 is `pass_cost`.
  """

  length: int = 7
  forced: bool = True
  match: int = 0
  layers: int = 0
  cost: float = 0.0

  def __post_init__(self) -> None:
    if self.length < 1:
      raise UserError(f'length={self.length} must be at least 1')
    if not 0 <= self.match <= _LONGEST_MATCH:
      raise UserError(f'match={self.match} must be from 0 to {_LONGEST_MATCH}')
    if self.layers < 0 or (self.match and self.layers):
      raise UserError(
        f'layers={self.layers} must be at least 0, and 0 beside match='
        f'{self.match}'
      )


FORCED = Drafts()


def parse(text: str, depth: int) -> Drafts:
  """The drafts that a user names: `off`, `lookup` or a number of layers.

  What a constraint forces is always among them.

  Args:
    text: the name.
    depth: layers of the model.

  Raises:
    UserError: it is none.
  """
  if text == 'off':
    return FORCED
  if text == 'lookup':
    return Drafts(match=4)
  if text.isascii() and text.isdigit() and 1 <= int(text) <= depth:
    return Drafts(length=3, layers=int(text))
  raise UserError(
    f'speculate={text!r} must be off, lookup, or a number of first layers, 1 '
    f'to {depth}'
  )


def pass_cost(rows: int, platform: str) -> float:
  """What a pass over 8 tokens costs, in steps of one token.

  On a CPU the product of few rows waits for memory, of many for arithmetic;
  measured by `benchmarks/drafts.py`. An accelerator waits for memory.

  Args:
    rows: of the batch.
    platform: JAX's name.
  """
  if platform != 'cpu':
    return 1.25
  return min(1.5 + 0.13 * (rows - 1), 4.0)


def forced(
  tables: Tables, state_B: Int[Array, 'B'], length: int
) -> Int[Array, 'B D']:
  """The tokens that must follow, -1 from where there is a choice on.

  Args:
    tables: the constraints.
    state_B: of the rows.
    length: D.
  """
  drafts = []
  for _ in range(length):
    draft_B = tables.forced_R[state_B]
    # A state with a choice has no next one: it stays, and so does the -1.
    next_B = tables.next_RV[state_B, jnp.maximum(draft_B, 0)]
    state_B = jnp.where(draft_B >= 0, next_B, state_B)
    drafts.append(draft_B)
  return jnp.stack(drafts, axis=1)


def lookup(
  token_BS: Int[Array, 'B S'],
  length_B: Int[Array, 'B'],
  last_B: Int[Array, 'B'],
  match: int,
  length: int,
  num_text_tokens: int,
) -> Int[Array, 'B D']:
  """What followed where the text was last as it is now; -1 from its end on.

  Of the places where at least `match` tokens agree, the one where most do, and
  of these the latest.

  Args:
    token_BS: what was read.
    length_B: tokens of `token_BS` that were.
    last_B: the newest token, not read yet.
    match: tokens that must agree.
    length: D.
    num_text_tokens: ids from here on are specials, which are not drafted.
  """
  S = token_BS.shape[1]
  row_B1 = jnp.arange(len(last_B))[:, None]
  token_BS = token_BS.at[row_B1[:, 0], length_B].set(last_B, mode='drop')
  place_S = jnp.arange(S)
  run_BS = jnp.zeros_like(token_BS)
  same_BS = jnp.ones(token_BS.shape, bool)
  for back in range(_LONGEST_MATCH):
    wanted_B1 = jnp.take_along_axis(
      token_BS, jnp.maximum(length_B - back, 0)[:, None], axis=1
    )
    same_BS &= (jnp.roll(token_BS, back, axis=1) == wanted_B1) & (
      place_S[None] >= back
    )
    run_BS += same_BS
  before_BS = place_S[None] < length_B[:, None]
  score_BS = jnp.where(before_BS, run_BS * S + place_S[None], 0)
  best_B = jnp.argmax(score_BS, axis=1)
  enough_B = jnp.max(score_BS, axis=1) >= match * S
  index_BD = best_B[:, None] + 1 + jnp.arange(length)[None]
  draft_BD = token_BS[row_B1, jnp.minimum(index_BD, S - 1)]
  known_BD = enough_B[:, None] & (index_BD <= length_B[:, None])
  known_BD &= (draft_BD < num_text_tokens) & (index_BD < S)
  known_BD = jnp.cumprod(known_BD, axis=1).astype(bool)
  return jnp.where(known_BD, draft_BD, _NONE)


def counts(draft_BD: Int[Array, 'B D']) -> Int[Array, 'B']:
  """Drafts of each row, those before its first -1."""
  return jnp.sum(jnp.cumprod(draft_BD >= 0, axis=1), axis=1)


def expected(
  draft_BD: Int[Array, 'B D'], acceptance_B: Float[Array, 'B']
) -> Float[Array, 'B']:
  """Tokens that a pass is expected to write; 0 for a row without a draft.

  Args:
    draft_BD: the drafts.
    acceptance_B: share of them that is accepted; the first rejected one
      ends the run.
  """
  D = draft_BD.shape[1]
  is_draft_BD = jnp.cumprod(draft_BD >= 0, axis=1)
  reach_BD = acceptance_B[:, None] ** jnp.arange(1, D + 1)[None]
  accepted_B = jnp.sum(reach_BD * is_draft_BD, axis=1)
  return jnp.where(draft_BD[:, 0] >= 0, 1 + accepted_B, 0.0)


def learned(
  acceptance_B: Float[Array, 'B'], accepted_B: Bool[Array, 'B']
) -> Float[Array, 'B']:
  """The acceptance rate after one draft more, read ahead or not."""
  return (1 - _NEWEST) * acceptance_B + _NEWEST * accepted_B
