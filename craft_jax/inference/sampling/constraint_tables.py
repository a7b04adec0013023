"""Constraints of many requests as one array on the device."""

from collections.abc import Iterable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from craft_jax.constrain.automaton import Automaton
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling.logits import permit

_ENTRIES = 1 << 18  # of the smallest table, so that most fit into it
_NONE = -1
# Bytes of the tables of an engine: several of the largest constraints that can
# be compiled, whatever the vocabulary (`constrain.budget.MAX_ENTRIES`).
CONSTRAINT_MEMORY = 1 << 27


@flax.struct.dataclass
class Tables:
  """The states of all constraints below each other.

  State 0 is that of a text without a constraint: it allows every token and
  leads to itself.

  Attributes:
    next_RV: the next state, -1 where the token is forbidden.
    accepting_R: whether the text may end there.
    distance_R: tokens to the nearest state where it may.
    forced_R: the token that must follow, -1 if there is a choice.
  """

  next_RV: Int[Array, 'R V']
  accepting_R: Bool[Array, 'R']
  distance_R: Int[Array, 'R']
  forced_R: Int[Array, 'R']


def state_bytes(vocabulary_size: int) -> int:
  """Bytes of one state in `Tables`."""
  return 4 * vocabulary_size + 1 + 4 + 4


def columns(automaton: Automaton, start: int) -> tuple[np.ndarray, ...]:
  """The rows of an automaton whose first state is row `start`: as `Tables`."""
  allowed = automaton.next_state >= 0
  choice = automaton.accepting | (allowed.sum(axis=1) != 1)
  return (
    np.where(allowed, automaton.next_state + start, _NONE),
    automaton.accepting,
    automaton.distance,
    np.where(choice, _NONE, allowed.argmax(axis=1)).astype(np.int32),
  )


def num_states(
  automata: Iterable[Automaton | None], vocabulary_size: int
) -> int:
  """A power of two of states that has room for these constraints.

  It is large enough for most, which then have the same shapes: one executable
  serves them all.
  """
  least = 1 << max(_ENTRIES // vocabulary_size, 1).bit_length() - 1
  rows = 1 + sum(a.num_states for a in {*automata} if a is not None)
  return max(least, 1 << (rows - 1).bit_length())


def stack(
  automata: Sequence[Automaton | None],
  vocabulary_size: int,
  device: jax.Device,
  R: int = 0,
) -> tuple[Tables, np.ndarray]:
  """The tables on a device, and the state in which each text begins.

  Args:
    automata: None is no constraint. Equal ones are stored once.
    vocabulary_size: V.
    device: where the tables are put.
    R: states of the tables; 0 is `num_states`.
  """
  R = R or num_states(automata, vocabulary_size)
  arrays = (
    np.full((R, vocabulary_size), _NONE, np.int32),
    np.zeros(R, bool),
    np.zeros(R, np.int32),
    np.full(R, _NONE, np.int32),
  )
  arrays[0][0], arrays[1][0] = 0, True
  starts: dict[Automaton | None, int] = {None: 0}
  end = 1
  for automaton in automata:
    if automaton not in starts:
      assert automaton is not None
      starts[automaton], end = end, end + automaton.num_states
      rows = columns(automaton, starts[automaton])
      for array, column in zip(arrays, rows, strict=True):
        array[starts[automaton] : end] = column
  tables = Tables(*jax.device_put(arrays, device))
  return tables, np.array([starts[a] for a in automata], np.int32)


def restrict(
  tables: Tables,
  vocabulary: Vocabulary,
  logits_BV: Float[Array, 'B V'],
  state_B: Int[Array, 'B'],
  left_B: Int[Array, 'B'],
  may_end_B: Bool[Array, 'B'],
) -> tuple[Float[Array, 'B V'], Int[Array, 'B V']]:
  """Minus infinity for what must not follow, and the state after each token.

  A token may follow where the rest of a whole text can still be written. A
  text ends only where its constraint accepts it, and must where nothing else
  may follow.

  Args:
    tables: the constraints.
    vocabulary: the tokens.
    logits_BV: of the next token.
    state_B: of the constraints.
    left_B: tokens that may still be written.
    may_end_B: rows that may end although more could follow.
  """
  next_BV = tables.next_RV[state_B]
  allowed_BV = (next_BV >= 0) & (tables.distance_R[next_BV] < left_B[:, None])
  stuck_B = ~jnp.any(allowed_BV[:, : vocabulary.num_text_tokens], axis=1)
  end_B = tables.accepting_R[state_B] & (stuck_B | may_end_B)
  ends = (vocabulary.bos, vocabulary.eos)
  return (
    permit(logits_BV, allowed_BV, end_B, vocabulary.num_text_tokens, ends),
    next_BV,
  )
