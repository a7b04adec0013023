"""Constraints come and go in tables of a fixed size on the device."""

import collections
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Int

from craft_jax.constrain.automaton import Automaton
from craft_jax.engine.scheduler import Full
from craft_jax.errors import UserError
from craft_jax.sample.tables import Tables, columns, stack

_BLOCK = 256  # states written per call


@dataclasses.dataclass
class _Part:
  """States `start` to `start + size` of the tables, and who needs them."""

  start: int
  size: int
  users: int = 0


class TableStore:
  """Automata on a device, each where there was room.

  One that nobody uses stays until its room is needed; the one unused for
  longest goes first.

  Args:
    vocabulary_size: V.
    device: where the tables are.

  Attributes:
    tables: of the moment. They are never changed in place, so that a dispatch
      under way keeps what it was given.
  """

  def __init__(self, vocabulary_size: int, device: jax.Device):
    self.tables, _ = stack([None], vocabulary_size, device)
    self._device = device
    # From the one unused for longest to the newest.
    self._parts: collections.OrderedDict[Automaton, _Part] = (
      collections.OrderedDict()
    )

  @property
  def num_states(self) -> int:
    """R, of which the first is that of free text."""
    return self.tables.accepting_R.shape[0]

  @property
  def num_held(self) -> int:
    """Automata in the tables, used or not."""
    return len(self._parts)

  def acquire(self, automaton: Automaton | None) -> int:
    """The state in which a text begins; its automaton stays until `release`.

    Raises:
      UserError: it has more states than the tables.
      Full: there is no room while others are used.
    """
    if automaton is None:
      return 0
    if automaton not in self._parts:
      start = self._room(automaton.num_states)
      self._parts[automaton] = _Part(start, automaton.num_states)
      self._write(automaton, start)
    self._parts.move_to_end(automaton)
    part = self._parts[automaton]
    part.users += 1
    return part.start

  def release(self, automaton: Automaton | None) -> None:
    """Ends one use."""
    if automaton is not None:
      self._parts[automaton].users -= 1
      assert self._parts[automaton].users >= 0

  def _room(self, size: int) -> int:
    """The start of `size` free states, for which unused automata may go."""
    if size >= self.num_states:
      raise UserError(
        f'the constraint has {size} states, more than the {self.num_states - 1}'
        ' that the tables hold; loosen it'
      )
    unused = [a for a, part in self._parts.items() if not part.users]
    used = [part for part in self._parts.values() if part.users]
    if _gap(used, size, self.num_states) is None:
      raise Full(
        f'no room for a constraint of {size} states beside those in use; '
        'send it again when some are finished'
      )
    while (start := _gap(self._parts.values(), size, self.num_states)) is None:
      del self._parts[unused.pop(0)]
    return start

  def warm(self) -> None:
    """Compiles the writing of a block, by one that changes nothing."""
    leaves = jax.tree.leaves(self.tables)
    none = [np.zeros((0, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
    self._write_block(0, none)

  def _write(self, automaton: Automaton, start: int) -> None:
    rows = columns(automaton, start)
    for first in range(0, automaton.num_states, _BLOCK):
      block = [column[first : first + _BLOCK] for column in rows]
      self._write_block(start + first, block)

  def _write_block(self, start: int, block: Sequence[np.ndarray]) -> None:
    """Writes rows from `start` on, at most `_BLOCK` of them."""
    count = len(block[0])
    # An index past the end is dropped: every block has one shape.
    index_W = np.full(_BLOCK, self.num_states, np.int32)
    index_W[:count] = start + np.arange(count)
    padded = [
      np.concatenate([c, np.zeros((_BLOCK - count, *c.shape[1:]), c.dtype)])
      for c in block
    ]
    index_W, *rows = jax.device_put((index_W, *padded), self._device)
    self.tables = write_rows(self.tables, index_W, Tables(*rows))


def _gap(parts, size: int, end: int) -> int | None:
  """The lowest start of `size` states that no part has; state 0 is taken."""
  at = 1
  for part in sorted(parts, key=lambda part: part.start):
    if part.start - at >= size:
      return at
    at = part.start + part.size
  return at if end - at >= size else None


@jax.jit
def write_rows(
  tables: Tables, index_W: Int[Array, 'W'], rows: Tables
) -> Tables:
  """The tables with other rows at `index_W`; an index past the end is none."""
  return jax.tree.map(
    lambda all_R, new_W: all_R.at[index_W].set(new_W, mode='drop'), tables, rows
  )
