"""Guesses of the next symbols, cheap to make and then read in one pass.

A guess never decides anything. What follows is chosen as it would have been
without one, by the same noise; a guess that is met has its symbol read already,
the first that is not ends the run. So the worst a guess can do is cost time.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from craft_jax.errors import UserError
from craft_jax.inference.sampling.constraint_tables import Tables

_NONE = -1
# Symbols looked at, so that of several places the one that agrees longest wins.
_LONGEST_MATCH = 16
# Of a row whose guesses have not been seen yet, the share that is met.
FIRST_HIT = 0.7
_NEWEST = 0.2  # weight of the newest guess in that share


@dataclasses.dataclass(frozen=True)
class Drafts:
  """Where guesses come from.

  Attributes:
    length: guesses in one pass; each length is a program.
    forced: what the constraint leaves no choice of (jump-forward).
    match: at least so many symbols, the newest last, stood in the text before:
      what followed there (prompt lookup, arXiv:2304.04487); 0 is off.
    layers: that many of the first layers, with the head, write ahead
      (self-drafting, arXiv:2309.08168); 0 is off.
    cost: of a pass, in steps of one symbol; it is made where more is expected
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
  """The guesses that a user names: `off`, `lookup` or a number of layers.

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
  """What a pass over 8 symbols costs, in steps of one symbol.

  On a CPU the product of few rows waits for memory, of many for arithmetic;
  measured by `benchmarks/guesses.py`. An accelerator waits for memory.

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
  """The symbols that must follow, -1 from where there is a choice on.

  Args:
    tables: the constraints.
    state_B: of the rows.
    length: D.
  """
  guesses = []
  for _ in range(length):
    guess_B = tables.forced_R[state_B]
    # A state with a choice has no next one: it stays, and so does the -1.
    next_B = tables.next_RV[state_B, jnp.maximum(guess_B, 0)]
    state_B = jnp.where(guess_B >= 0, next_B, state_B)
    guesses.append(guess_B)
  return jnp.stack(guesses, axis=1)


def lookup(
  symbol_BS: Int[Array, 'B S'],
  length_B: Int[Array, 'B'],
  last_B: Int[Array, 'B'],
  match: int,
  length: int,
  num_symbols: int,
) -> Int[Array, 'B D']:
  """What followed where the text was last as it is now; -1 from its end on.

  Of the places where at least `match` symbols agree, the one where most do, and
  of these the latest.

  Args:
    symbol_BS: what was read.
    length_B: symbols of `symbol_BS` that were.
    last_B: the newest symbol, not read yet.
    match: symbols that must agree.
    length: D.
    num_symbols: ids from here on are specials, which are not guessed.
  """
  S = symbol_BS.shape[1]
  row_B1 = jnp.arange(len(last_B))[:, None]
  symbol_BS = symbol_BS.at[row_B1[:, 0], length_B].set(last_B, mode='drop')
  place_S = jnp.arange(S)
  run_BS = jnp.zeros_like(symbol_BS)
  same_BS = jnp.ones(symbol_BS.shape, bool)
  for back in range(_LONGEST_MATCH):
    wanted_B1 = jnp.take_along_axis(
      symbol_BS, jnp.maximum(length_B - back, 0)[:, None], axis=1
    )
    same_BS &= (jnp.roll(symbol_BS, back, axis=1) == wanted_B1) & (
      place_S[None] >= back
    )
    run_BS += same_BS
  before_BS = place_S[None] < length_B[:, None]
  score_BS = jnp.where(before_BS, run_BS * S + place_S[None], 0)
  best_B = jnp.argmax(score_BS, axis=1)
  enough_B = jnp.max(score_BS, axis=1) >= match * S
  index_BD = best_B[:, None] + 1 + jnp.arange(length)[None]
  guess_BD = symbol_BS[row_B1, jnp.minimum(index_BD, S - 1)]
  known_BD = enough_B[:, None] & (index_BD <= length_B[:, None])
  known_BD &= (guess_BD < num_symbols) & (index_BD < S)
  known_BD = jnp.cumprod(known_BD, axis=1).astype(bool)
  return jnp.where(known_BD, guess_BD, _NONE)


def counts(guess_BD: Int[Array, 'B D']) -> Int[Array, 'B']:
  """Guesses of each row, those before its first -1."""
  return jnp.sum(jnp.cumprod(guess_BD >= 0, axis=1), axis=1)


def expected(
  guess_BD: Int[Array, 'B D'], hit_B: Float[Array, 'B']
) -> Float[Array, 'B']:
  """Symbols that a pass is expected to write; 0 for a row without a guess.

  Args:
    guess_BD: the guesses.
    hit_B: share of them that is met; the first that is not ends the run.
  """
  D = guess_BD.shape[1]
  is_guess_BD = jnp.cumprod(guess_BD >= 0, axis=1)
  reach_BD = hit_B[:, None] ** jnp.arange(1, D + 1)[None]
  met_B = jnp.sum(reach_BD * is_guess_BD, axis=1)
  return jnp.where(guess_BD[:, 0] >= 0, 1 + met_B, 0.0)


def learned(
  hit_B: Float[Array, 'B'], met_B: Bool[Array, 'B']
) -> Float[Array, 'B']:
  """The share that is met after one guess more, read ahead or not."""
  return (1 - _NEWEST) * hit_B + _NEWEST * met_B
