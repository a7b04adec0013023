"""Nondeterministic finite automata by Thompson's construction (1968)."""

from collections.abc import Iterable

from craft_jax.constrain.budget import Budget
from craft_jax.constrain.encoding import Steps, steps_of
from craft_jax.constrain.intervals import Intervals, contains
from craft_jax.constrain.nodes import (
  Anchor,
  Choice,
  Concat,
  Graph,
  Node,
  Repeat,
  Tokens,
)
from craft_jax.errors import UserError

_LINE_FEED = 10  # also as a byte


class Nfa:
  """An NFA whose steps read a code point or byte, and whose jumps read none.

  Attributes:
    sets: sets of code points or bytes that steps read.
    steps: steps of each state, pairs of an index into `sets` and a state.
    jumps: epsilon transitions of each state.
    anchors: states whose jumps are taken only at the start or the end of the
      text, and the anchor that says which.
    start: start state, which has no incoming transition.
    final: accepting state.
  """

  def __init__(self, node: Node, utf8: bool, budget: Budget):
    """Builds the automaton.

    Args:
      node: expression over code points.
      utf8: whether the steps read bytes of UTF-8 instead of code points.
      budget: budget of the compilation.

    Raises:
      UserError: it exceeds the budget, or a line feed may follow a `$`.
    """
    self.steps: list[list[tuple[int, int]]] = []
    self.jumps: list[list[int]] = []
    self.anchors: dict[int, Anchor] = {}
    self._budget = budget
    self._utf8 = utf8
    self._index_of: dict[Intervals, int] = {}
    # Looked up by node first, because hashing a large set is slow.
    self._steps_of: dict[Tokens, list[tuple[int, int, int]]] = {}
    self._steps_of_set: dict[Intervals, list[tuple[int, int, int]]] = {}
    self._near: dict[int, frozenset[int]] = {}
    self.start, self.final = self._new(), self._new()
    # A state of its own, so that no transition leads back to `start`.
    first = self._new()
    self.jumps[self.start].append(first)
    self._build(node, first)
    self.sets = list(self._index_of)
    for state, anchor in self.anchors.items():
      if anchor.where == 'line':
        self._check_line(state, anchor)

  def near(self, states: Iterable[int]) -> frozenset[int]:
    """Epsilon closure of states, without passing anchors.

    It lists only states with steps, the final one and anchors of the end.
    """
    found = []
    for state in states:
      if state not in self._near:
        self._near[state] = self.reach([state], set())
      found.append(self._near[state])
      self._budget.spend(len(found[-1]))
    return found[0] if len(found) == 1 else frozenset().union(*found)

  def reach(self, states: Iterable[int], places: set[str]) -> frozenset[int]:
    """Epsilon closure as of `near`, passing anchors at `places`, too."""
    stack = list(states)
    seen = set(stack)
    matter = set()
    while stack:
      state = stack.pop()
      anchor = self.anchors.get(state)
      ends = anchor is not None and anchor.where != 'start'
      if self.steps[state] or state == self.final or ends:
        matter.add(state)
      if anchor and anchor.where not in places:
        continue
      for target in self.jumps[state]:
        if target not in seen:
          seen.add(target)
          stack.append(target)
    self._budget.spend(len(seen))
    return frozenset(matter)

  def _build(self, node: Node, first: int) -> None:
    """Connects `first` to `final` by the automaton of a node.

    A node adds no transition into its source or out of its target, so that
    adjacent nodes cannot interfere.
    """
    stack = [(first, node, self.final)]
    while stack:
      source, node, target = stack.pop()
      if isinstance(node, Tokens):
        self._add_tokens(source, node, target)
      elif isinstance(node, Choice):
        self._budget.spend(len(node.options))
        stack.extend((source, option, target) for option in node.options)
      elif isinstance(node, Concat):
        for part in node.parts:
          after = self._new()
          stack.append((source, part, after))
          source = after
        self.jumps[source].append(target)
      elif isinstance(node, Repeat):
        self._add_repeat(source, node, target, stack)
      elif isinstance(node, Graph):
        self._add_graph(source, node, target, stack)
      else:
        gate = self._new()
        self.anchors[gate] = node
        self.jumps[source].append(gate)
        self.jumps[gate].append(target)

  def _add_repeat(
    self,
    source: int,
    node: Repeat,
    target: int,
    stack: list[tuple[int, Node, int]],
  ) -> None:
    for _ in range(node.least):
      after = self._new()
      stack.append((source, node.body, after))
      source = after
    if node.most is None:
      loop = self._new()
      self.jumps[source].append(loop)
      self.jumps[loop].append(target)
      stack.append((loop, node.body, loop))
      return
    for _ in range(node.least, node.most):
      self.jumps[source].append(target)
      after = self._new()
      stack.append((source, node.body, after))
      source = after
    self.jumps[source].append(target)

  def _add_graph(
    self,
    source: int,
    node: Graph,
    target: int,
    stack: list[tuple[int, Node, int]],
  ) -> None:
    last = max((max(a, b) for a, _, b in node.edges), default=0)
    place = [self._new() for _ in range(last + 1)]
    self.jumps[source].append(place[0])
    for end in node.ends:
      self.jumps[place[end]].append(target)
    stack.extend((place[a], label, place[b]) for a, label, b in node.edges)
    self._budget.spend(len(node.edges))

  def _add_tokens(self, source: int, node: Tokens, target: int) -> None:
    if node not in self._steps_of:
      self._steps_of[node] = self._steps_of_intervals(node.intervals)
    places = {0: source, 1: target}
    for a, index, b in self._steps_of[node]:
      for place in (a, b):
        if place not in places:
          places[place] = self._new()
      self.steps[places[a]].append((index, places[b]))
      self._budget.spend(1)

  def _steps_of_intervals(
    self, intervals: Intervals
  ) -> list[tuple[int, int, int]]:
    """Steps (from, index into `sets`, to) that read one code point."""
    if intervals not in self._steps_of_set:
      steps: Steps = [(0, intervals, 1)] if intervals else []
      if self._utf8:
        steps = steps_of(intervals, self._budget.spend)
      self._steps_of_set[intervals] = [
        (a, self._index_of.setdefault(s, len(self._index_of)), b)
        for a, s, b in steps
      ]
    self._budget.spend(len(intervals))
    return self._steps_of_set[intervals]

  def _new(self) -> int:
    self._budget.add_node()
    self.steps.append([])
    self.jumps.append([])
    return len(self.steps) - 1

  def _check_line(self, state: int, anchor: Anchor) -> None:
    """Raises `UserError` if a line feed may follow the `$` of an anchor.

    In Python `$` also matches before a line feed that ends the text.
    """
    after = self.reach(self.jumps[state], {'start', 'end', 'line'})
    for index in {index for s in after for index, _ in self.steps[s]}:
      if contains(self.sets[index], _LINE_FEED):
        raise UserError(
          f'{self._budget.name}: a line feed may follow the $ at position '
          f'{anchor.position}; use \\Z for the end of the text'
        )
