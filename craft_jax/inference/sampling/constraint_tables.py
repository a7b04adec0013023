"""Constraints of many requests as one array on the device."""

import functools
from collections.abc import Sequence

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


@functools.partial(jax.jit, static_argnames=('num_states', 'vocabulary_size'))
def empty_tables(
  zero: Int[Array, ''], num_states: int, vocabulary_size: int
) -> Tables:
  """Tables of free text, with room for so many states, the first included.

  `zero` is what it says, and not known to the compiler, which would otherwise
  work the tables out and keep them in the program.
  """
  R, V = num_states, vocabulary_size
  return Tables(
    jnp.full((R, V), zero + _NONE).at[0].set(0),
    jnp.full(R, zero > 0).at[0].set(True),
    jnp.full(R, zero),
    jnp.full(R, zero + _NONE),
  )


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


def stack(
  automata: Sequence[Automaton | None],
  vocabulary_size: int,
  device: jax.Device,
) -> tuple[Tables, np.ndarray]:
  """The tables on a device, and the first state of each text.

  R is a power of two with room to spare, so that other constraints have the
  same shapes: an executable serves them all.

  Args:
    automata: of each text; None is no constraint. Equal ones are stored once.
    vocabulary_size: V.
    device: where the tables are put.
  """
  starts: dict[Automaton | None, int] = {None: 0}
  rows = 1
  for automaton in automata:
    if automaton not in starts:
      starts[automaton] = rows
      rows += automaton.num_states if automaton else 0
  least = 1 << max(_ENTRIES // vocabulary_size, 1).bit_length() - 1
  R = max(least, 1 << (rows - 1).bit_length())
  arrays = (
    np.full((R, vocabulary_size), _NONE, np.int32),
    np.zeros(R, bool),
    np.zeros(R, np.int32),
    np.full(R, _NONE, np.int32),
  )
  arrays[0][0], arrays[1][0] = 0, True
  for automaton, start in starts.items():
    if automaton is not None:
      part = slice(start, start + automaton.num_states)
      for array, column in zip(arrays, columns(automaton, start), strict=True):
        array[part] = column
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
