"""Deterministic finite automata: construction, minimisation, intersection.

They read integers: code points, bytes or token ids. For speed nothing loops
over single integers, only over classes of those that no state distinguishes.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from craft_jax.constrain.budget import Budget
from craft_jax.constrain.intervals import Intervals, partition
from craft_jax.constrain.nfa import Nfa

_STATE_WORK = 60  # operations per state
_Key = TypeVar('_Key', bound=Hashable)
# Distinct next states, and each class's index into them; None and -1: none.
_Row = tuple[Sequence[_Key | None], list[int]]


@dataclasses.dataclass(frozen=True)
class Dfa:
  """A minimal DFA, without states if its language is empty.

  Attributes:
    rows: next state by state and class, or -1; state 0 is the start.
    accepting: whether a text may end in each state.
    distance: number of integers to the nearest accepting state.
    classes: integers of each class.
  """

  rows: list[list[int]]
  accepting: list[bool]
  distance: list[int]
  classes: tuple[Intervals, ...]


def from_nfa(
  nfa: Nfa, occurs: Callable[[int, int], bool], budget: Budget
) -> Dfa:
  """Determinises an NFA by the subset construction (Rabin and Scott 1959).

  Args:
    nfa: the automaton.
    occurs: whether the alphabet has an integer in an inclusive interval.
    budget: budget of the compilation.
  """
  budget.spend(sum(map(len, nfa.sets)))
  parts = partition(nfa.sets, occurs)
  first = nfa.reach([nfa.start], {'start'}) | {nfa.start}

  shapes: dict[int, tuple[list[int], list[int]]] = {}

  def row_of(states: frozenset[int]) -> _Row[frozenset[int]]:
    targets: dict[int, list[int]] = {}
    for state in states:
      for index, target in nfa.steps[state]:
        targets.setdefault(index, []).append(target)
    used = sum(1 << index for index in targets)
    if used not in shapes:
      shapes[used] = _shape(parts, used)
      budget.spend(2 * len(parts))
    shared_bits, shape = shapes[used]
    after = []
    for shared in shared_bits:
      inside = (targets[index] for index in targets if shared >> index & 1)
      after.append(nfa.near({target for some in inside for target in some}))
      budget.spend(2 * len(targets))
    budget.spend(2 * len(states))
    return after, shape

  rows, keys = _explore(first, row_of, budget)
  accepting = [_accepts(nfa, states) for states in keys]
  return reduce(rows, accepting, tuple(parts.values()), budget)


def _shape(parts: Iterable[int], used: int) -> tuple[list[int], list[int]]:
  """Groups classes by which of the sets in `used` (bits) contain them.

  Returns:
    The distinct combinations of sets, and the index of each class's, or -1.
  """
  number = {0: -1}
  for bits in parts:
    number.setdefault(bits & used, len(number) - 1)
  shape = [number[bits & used] for bits in parts]
  return list(number)[1:], shape


def _accepts(nfa: Nfa, states: frozenset[int]) -> bool:
  """Whether a text may end in a set of NFA states."""
  if not nfa.anchors.keys() & states:
    return nfa.final in states
  places = {'end', 'line'} | ({'start'} if nfa.start in states else set())
  return nfa.final in nfa.reach(states, places)


def intersection(a: Dfa, b: Dfa, budget: Budget) -> Dfa:
  """The DFA of the texts that both match, by the product construction."""
  parts = partition([*a.classes, *b.classes], lambda low, high: True)
  # A part lies in at most one class of each DFA; the lower bits are those of a.
  split = len(a.classes)
  pairs = {}
  for bits, part in parts.items():
    in_a, in_b = bits & ((1 << split) - 1), bits >> split
    if in_a and in_b:
      pairs[in_a.bit_length() - 1, in_b.bit_length() - 1] = part

  shape = list(range(len(pairs)))

  def row_of(states: tuple[int, int]) -> _Row[tuple[int, int]]:
    row_a, row_b = a.rows[states[0]], b.rows[states[1]]
    budget.spend(2 * len(pairs))
    after = ((row_a[i], row_b[j]) for i, j in pairs)
    return [key if min(key) >= 0 else None for key in after], shape

  if not a.rows or not b.rows:
    return Dfa([], [], [], ())
  rows, keys = _explore((0, 0), row_of, budget)
  accepting = [a.accepting[i] and b.accepting[j] for i, j in keys]
  return reduce(rows, accepting, tuple(pairs.values()), budget)


def build(
  first: _Key,
  row_of: Callable[[_Key], list[_Key | None]],
  accepts: Callable[[_Key], bool],
  classes: tuple[Intervals, ...],
  budget: Budget,
) -> Dfa:
  """The minimal DFA with start `first` and next states `row_of`, by class."""
  shape = list(range(len(classes)))
  rows, keys = _explore(first, lambda key: (row_of(key), shape), budget)
  return reduce(rows, [accepts(key) for key in keys], classes, budget)


def _explore(
  first: _Key, row_of: Callable[[_Key], _Row[_Key]], budget: Budget
) -> tuple[list[list[int]], list[_Key]]:
  """Numbers all reachable states in breadth-first order."""
  number: dict[_Key | None, int] = {None: -1, first: 0}
  keys = [first]
  rows = []
  for key in keys:  # grows during the loop
    after, shape = row_of(key)
    for target in after:
      if target not in number:
        assert target is not None
        number[target] = len(keys)
        keys.append(target)
        budget.check_states(len(keys))
    numbers = [*(number[target] for target in after), -1]
    rows.append([numbers[k] for k in shape])
    budget.spend(2 * len(after) + len(shape) // 2 + _STATE_WORK)
  return rows, keys


def reduce(
  rows: list[list[int]],
  accepting: list[bool],
  classes: tuple[Intervals, ...],
  budget: Budget,
) -> Dfa:
  """Removes states that cannot reach an accepting one, and minimises."""
  before: list[set[int]] = [set() for _ in rows]
  for state, row in enumerate(rows):
    for target in set(row):
      if target >= 0:
        before[target].add(state)
  distance = _distances(before, accepting)
  if distance[0] is None:
    return Dfa([], [], [], ())
  # Target -1 finds the extra entry at the end, the block of dead states.
  block = [-1 if d is None else d for d in distance]
  block = _equal_states(rows, block, before, budget)
  first_of: dict[int, int] = {}
  for state, name in enumerate(block[:-1]):
    if name >= 0:
      first_of.setdefault(name, state)
  number = {name: k for k, name in enumerate(first_of)} | {-1: -1}
  kept = list(first_of.values())
  return Dfa(
    [[number[block[target]] for target in rows[s]] for s in kept],
    [accepting[s] for s in kept],
    [distance[s] or 0 for s in kept],
    classes,
  )


def _distances(
  before: list[set[int]], accepting: list[bool]
) -> list[int | None]:
  """Steps to the nearest accepting state; None if none can be reached."""
  queue = [state for state, accepts in enumerate(accepting) if accepts]
  distance: list[int | None] = [0 if accepts else None for accepts in accepting]
  for state in queue:  # grows during the loop
    for source in before[state]:
      if distance[source] is None:
        distance[source] = (distance[state] or 0) + 1
        queue.append(source)
  return distance


def _equal_states(
  rows: list[list[int]],
  block: list[int],
  before: list[set[int]],
  budget: Budget,
) -> list[int]:
  """Refines a partition until each block holds equivalent states.

  Equivalent states have equal distances, so the initial blocks are the
  distances, which makes long chains cheap. After a split the largest part
  keeps its block, and only predecessors of the other parts are examined again,
  so a state changes its block at most log2(states) times (Hopcroft 1971).
  States of a block that are not in `changed` are equivalent.

  Args:
    rows: next state by state and class, or -1.
    block: initial block of each state, -1 for dead states.
    before: predecessors of each state.
    budget: budget of the compilation.

  Returns:
    The block of each state, and -1 as a last entry, for target -1.
  """
  members: dict[int, set[int]] = {}
  for state, name in enumerate(block):
    if name >= 0:
      members.setdefault(name, set()).add(state)
  block = [*block, -1]
  fresh = max(block) + 1
  changed = set().union(*members.values())
  while changed:
    splits: list[tuple[int, set[int]]] = []
    for name, states in _by_block(changed, block).items():
      parts = _parts(rows, block, members[name], states)
      budget.spend(len(states) * (1 + len(rows[0]) // 4))
      splits.extend((name, part) for part in parts)
    changed = set()
    for name, part in splits:
      members[name] -= part
      members[fresh] = part
      for state in part:
        block[state] = fresh
        changed |= before[state]
      fresh += 1
    changed = {state for state in changed if block[state] >= 0}
  return block


def _by_block(states: set[int], block: list[int]) -> dict[int, set[int]]:
  """Groups states by block."""
  found: dict[int, set[int]] = {}
  for state in states:
    found.setdefault(block[state], set()).add(state)
  return found


def _parts(
  rows: list[list[int]],
  block: list[int],
  members: set[int],
  changed: set[int],
) -> list[set[int]]:
  """Splits a block by next blocks; returns all parts but the largest.

  Members that did not change are equivalent, so only one of them is examined.
  """
  name_of = block.__getitem__
  alike: dict[tuple[int, ...], set[int]] = {}
  for state in changed:
    alike.setdefault(tuple(map(name_of, rows[state])), set()).add(state)
  others = len(members) - len(changed)
  if not others:
    return sorted(alike.values(), key=len)[:-1]
  one = next(state for state in members if state not in changed)
  like_others = alike.pop(tuple(map(name_of, rows[one])), set())
  largest = max(alike.values(), key=len, default=like_others)
  if len(largest) > others + len(like_others):
    parts = [part for part in alike.values() if part is not largest]
    return [*parts, members.difference(changed) | like_others]
  return list(alike.values())
