"""Constraints come and go in tables of a fixed size on the device."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Int

from craft_jax.constrain import Automaton, valid_utf8
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.sampling.constraint_tables import (
  Tables,
  columns,
  num_states,
  stack,
  state_bytes,
)

_BLOCK = 256  # states written per call


@dataclasses.dataclass(frozen=True)
class Capacity:
  """How large the constraints may be whose tables have so much memory.

  State 0 is that of free text. Of bytes the states of UTF-8 come next, which
  free text keeps to: they stay, so that free text never waits for room.

  Attributes:
    memory: bytes of the tables on the device.
    vocabulary: of the model.

  Raises:
    UserError: no constraint has room.
  """

  memory: int
  vocabulary: Vocabulary

  def __post_init__(self) -> None:
    if self.most < 1:
      least = (self.first + 1) * state_bytes(self.vocabulary.size)
      raise UserError(
        f'constraint_memory={self.memory} has no room for a constraint; give '
        f'at least {least} bytes'
      )

  @classmethod
  def of(
    cls, constraints: Iterable[Automaton], vocabulary: Vocabulary
  ) -> 'Capacity':
    """That of tables with room for these constraints at once, or more."""
    size = vocabulary.size
    always = valid_utf8(vocabulary) if vocabulary.kind == 'byte' else None
    states = num_states([always, *constraints], size)
    return cls(states * state_bytes(size), vocabulary)

  @property
  def num_states(self) -> int:
    """R of the tables."""
    return self.memory // state_bytes(self.vocabulary.size)

  @functools.cached_property
  def always(self) -> Automaton | None:
    """The automaton that stays in the tables."""
    if self.vocabulary.kind == 'byte':
      return valid_utf8(self.vocabulary)
    return None

  @property
  def first(self) -> int:
    """The first state of those that come and go."""
    return 1 + (self.always.num_states if self.always else 0)

  @property
  def most(self) -> int:
    """States of the largest constraint, or of all that are used at once."""
    return self.num_states - self.first

  def check(self, automaton: Automaton | None) -> None:
    """Whether a constraint has room when no other is used.

    Raises:
      UserError: it has more states than the tables.
    """
    size = self.size(automaton)
    if size > self.most:
      needed = (self.first + size) * state_bytes(self.vocabulary.size)
      raise UserError(
        f'the constraint has {size} states, more than the {self.most} that '
        f'{self.memory} bytes of constraint tables hold; loosen it, or serve '
        f'with --constraint-memory={needed} or more'
      )

  def size(self, automaton: Automaton | None) -> int:
    """States that a constraint needs beside those that stay."""
    if automaton is None or automaton == self.always:
      return 0
    return automaton.num_states


@dataclasses.dataclass
class _Part:
  """States `start` to `start + size` of the tables, and who needs them."""

  start: int
  size: int
  users: int = 0


class TableStore:
  """Automata on a device, each where there was room; equal ones are one.

  One that nobody uses stays until its room is needed; the one unused for
  longest goes first.

  Args:
    capacity: of the tables.
    device: where the tables are.
    constraints: that are written at once; there has to be room for them.

  Attributes:
    capacity: of the tables.
    tables: of the moment. Writing takes them over: the device finishes what
      reads them before.
  """

  def __init__(
    self,
    capacity: Capacity,
    device: jax.Device,
    constraints: Iterable[Automaton] = (),
  ):
    self.capacity = capacity
    self._device = device
    # From the one unused for longest to the newest.
    self._parts: collections.OrderedDict[Automaton, _Part] = (
      collections.OrderedDict()
    )
    held = [capacity.always, *dict.fromkeys(constraints)]
    self.tables, starts = stack(
      held, capacity.vocabulary.size, device, capacity.num_states
    )
    for automaton, start in zip(held, starts.tolist(), strict=True):
      if automaton not in (None, capacity.always):
        self._parts[automaton] = _Part(start, automaton.num_states)

  @property
  def num_held(self) -> int:
    """Automata in the tables, used or not, but for the one that stays."""
    return len(self._parts)

  @property
  def num_users(self) -> int:
    """Uses that were not released."""
    return sum(part.users for part in self._parts.values())

  def acquire(self, automaton: Automaton | None) -> int | None:
    """The state in which a text begins; its automaton stays until `release`.

    None if there is no room while others are used. There is room where none is
    and `Capacity.check` lets it pass.
    """
    if automaton is None:
      return 0
    if automaton == self.capacity.always:
      return 1
    if automaton not in self._parts:
      start = self._room(automaton.num_states)
      if start is None:
        return None
      self._parts[automaton] = _Part(start, automaton.num_states)
      self._write(automaton, start)
    self._parts.move_to_end(automaton)
    part = self._parts[automaton]
    part.users += 1
    return part.start

  def release(self, automaton: Automaton | None) -> None:
    """Ends one use."""
    part = automaton and self._parts.get(automaton)
    if part:
      part.users -= 1
      assert part.users >= 0

  def _room(self, size: int) -> int | None:
    """The start of `size` free states, for which unused automata may go."""
    unused = [a for a, part in self._parts.items() if not part.users]
    if self._gap((p for p in self._parts.values() if p.users), size) is None:
      return None
    while (start := self._gap(self._parts.values(), size)) is None:
      del self._parts[unused.pop(0)]
    return start

  def _gap(self, parts: Iterable[_Part], size: int) -> int | None:
    """The lowest start of `size` states that no part has."""
    at = self.capacity.first
    for part in sorted(parts, key=lambda part: part.start):
      if part.start - at >= size:
        return at
      at = part.start + part.size
    return at if self.capacity.num_states - at >= size else None

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
    index_W = np.full(_BLOCK, self.capacity.num_states, np.int32)
    index_W[:count] = start + np.arange(count)
    padded = [
      np.concatenate([c, np.zeros((_BLOCK - count, *c.shape[1:]), c.dtype)])
      for c in block
    ]
    index_W, *rows = jax.device_put((index_W, *padded), self._device)
    self.tables = write_rows(self.tables, index_W, Tables(*rows))


@functools.partial(jax.jit, donate_argnames='tables')
def write_rows(
  tables: Tables, index_W: Int[Array, 'W'], rows: Tables
) -> Tables:
  """The tables with other rows at `index_W`; an index past the end is none."""
  return jax.tree.map(
    lambda all_R, new_W: all_R.at[index_W].set(new_W, mode='drop'), tables, rows
  )
