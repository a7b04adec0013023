"""Automata over classes of tokens: built, trimmed, minimised, intersected.

A token is an integer: a code point, a byte or an id of a vocabulary. Nothing
here loops over tokens, only over classes of those that are treated alike.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from craft_jax.constrain.budget import Budget
from craft_jax.constrain.intervals import Intervals, partition
from craft_jax.constrain.nfa import Nfa

_STATE_WORK = 60  # of any state, in operations
_Key = TypeVar('_Key', bound=Hashable)
# Next states, and of each class an index into them; None and -1 are none.
_Row = tuple[Sequence[_Key | None], list[int]]


@dataclasses.dataclass(frozen=True)
class Dfa:
  """A minimal automaton. No state at all: nothing is matched.

  Attributes:
    rows: of each state and class the next state, -1 for none; 0 is first.
    accepting: whether a text may end there.
    distance: tokens from each state to the nearest accepting one.
    classes: the tokens of each class.
  """

  rows: list[list[int]]
  accepting: list[bool]
  distance: list[int]
  classes: tuple[Intervals, ...]


def from_nfa(
  nfa: Nfa, occurs: Callable[[int, int], bool], budget: Budget
) -> Dfa:
  """Subset construction (Rabin and Scott 1959).

  Args:
    nfa: what is matched.
    occurs: whether an interval holds a token that can occur at all.
    budget: of the compilation.
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
  """What distinguishes classes where only the sets in `used` matter.

  Returns:
    The different combinations of these sets, and which of them each class
    lies in, -1 for none.
  """
  number = {0: -1}
  for bits in parts:
    number.setdefault(bits & used, len(number) - 1)
  shape = [number[bits & used] for bits in parts]
  return list(number)[1:], shape


def _accepts(nfa: Nfa, states: frozenset[int]) -> bool:
  """Whether a text may end in these states."""
  if not nfa.anchors.keys() & states:
    return nfa.final in states
  places = {'end', 'line'} | ({'start'} if nfa.start in states else set())
  return nfa.final in nfa.reach(states, places)


def intersection(a: Dfa, b: Dfa, budget: Budget) -> Dfa:
  """What both match: the product of their states."""
  parts = partition([*a.classes, *b.classes], lambda low, high: True)
  # A part lies in at most one class of each; bits count from a's first.
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
  """The automaton whose states are whatever `row_of` leads to, by class."""
  shape = list(range(len(classes)))
  rows, keys = _explore(first, lambda key: (row_of(key), shape), budget)
  return reduce(rows, [accepts(key) for key in keys], classes, budget)


def _explore(
  first: _Key, row_of: Callable[[_Key], _Row[_Key]], budget: Budget
) -> tuple[list[list[int]], list[_Key]]:
  """Numbers what can be reached from `first`, nearest first."""
  number: dict[_Key | None, int] = {None: -1, first: 0}
  keys = [first]
  rows = []
  for key in keys:  # grows meanwhile
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
  """Without states that lead nowhere, and with equal states merged."""
  before: list[set[int]] = [set() for _ in rows]
  for state, row in enumerate(rows):
    for target in set(row):
      if target >= 0:
        before[target].add(state)
  distance = _distances(before, accepting)
  if distance[0] is None:
    return Dfa([], [], [], ())
  # A dead state is one more than the last: block[-1], as for no state.
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
  """Tokens to the nearest accepting state; None where there is none."""
  queue = [state for state, accepts in enumerate(accepting) if accepts]
  distance: list[int | None] = [0 if accepts else None for accepts in accepting]
  for state in queue:  # grows meanwhile
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
  """Splits blocks until the states of each are equal.

  Equal states have equal distances, so the blocks begin as these, which makes
  long chains cheap. After a split the largest part keeps the name, and only
  states before the others are looked at again (Hopcroft 1971: a state changes
  its name at most log2(states) times). States of a block that nothing has
  happened to since are alike.

  Args:
    rows: next states, -1 for none.
    block: of each state a name, -1 if it leads nowhere.
    before: the states that lead to each state.
    budget: of the compilation.

  Returns:
    The names, from 0, and -1 at the end, where `rows` finds it at -1.
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
  """The states of each block."""
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
  """What the members fall into, without the largest part, which remains.

  Only those that changed are looked at, and one of the others.
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
