"""Automata over token ids as arrays, in the form that sampling reads."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from craft_jax.constrain import dfa as dfas
from craft_jax.constrain.alphabet import Alphabet
from craft_jax.constrain.budget import Budget
from craft_jax.constrain.dfa import Dfa
from craft_jax.constrain.intervals import union
from craft_jax.errors import UserError

_NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
  """A minimal deterministic automaton of the texts that a constraint allows.

  State 0 is the start. An accepting state can be reached from every state, so
  a state that does not accept allows a token. Special tokens (BOS, EOS, PAD,
  UNK) are never allowed: the sampler decides to end a text in an accepting
  state, and has to if that state allows no token. Equal languages over one
  vocabulary have equal arrays; automata are compared by language.

  Attributes:
    token_class: int32 `[V]`; tokens that no state distinguishes share a class,
      and classes are numbered by lowest token id; -1 is never allowed.
    class_next: int32 `[states, classes]`, next state, or -1 if forbidden.
    accepting: bool `[states]`, whether a text may end in the state.
    distance: int32 `[states]`, tokens to the nearest accepting state.
    forced: int32 `[states]`, the only token that a state allows, or -1 if the
      state accepts or allows several.
    work: operations that compilation took, counted by `Budget`.
  """

  token_class: np.ndarray
  class_next: np.ndarray
  accepting: np.ndarray
  distance: np.ndarray
  forced: np.ndarray
  work: int

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Automaton) and self._digest == other._digest

  def __hash__(self) -> int:
    return hash(self._digest)

  @functools.cached_property
  def _digest(self) -> bytes:
    """SHA-256 of the arrays that determine all others."""
    digest = hashlib.sha256(repr(self.class_next.shape).encode())
    for array in (self.token_class, self.class_next, self.accepting):
      digest.update(array.tobytes())
    return digest.digest()

  @property
  def num_states(self) -> int:
    """Number of states."""
    return len(self.accepting)

  @functools.cached_property
  def next_state(self) -> np.ndarray:
    """Next state by token, int32 `[states, V]`; -1 if forbidden."""
    # The last column, indexed by -1, is for tokens that are never allowed.
    padded = np.pad(self.class_next, ((0, 0), (0, 1)), constant_values=_NONE)
    table = padded[:, self.token_class]
    table.flags.writeable = False
    return table

  def walk(self, ids: np.ndarray | Sequence[int], state: int = 0) -> int:
    """State after reading token ids; -1 if one of them is forbidden."""
    for token in ids:
      if state < 0 or self.token_class[token] < 0:
        return _NONE
      state = int(self.class_next[state, self.token_class[token]])
    return state

  def accepts(self, ids: np.ndarray | Sequence[int]) -> bool:
    """Whether the token ids are a complete text of the language."""
    state = self.walk(ids)
    return state >= 0 and bool(self.accepting[state])

  def shortest_completion(self, state: int) -> np.ndarray:
    """Token ids of the shortest path to an accepting state, int32.

    The first by id among the shortest; empty if the state accepts.
    """
    ids = []
    lowest = self._lowest_id
    while self.distance[state]:
      row = self.class_next[state]
      nearer = (row >= 0) & (self.distance[row] == self.distance[state] - 1)
      chosen = int(nearer.argmax())
      ids.append(lowest[chosen])
      state = int(row[chosen])
    return np.array(ids, np.int32)

  @functools.cached_property
  def _lowest_id(self) -> np.ndarray:
    """Lowest token id of each class."""
    classes, ids = np.unique(self.token_class, return_index=True)
    return ids[classes >= 0]


def from_dfa(dfa: Dfa, alphabet: Alphabet, budget: Budget) -> Automaton:
  """Converts a DFA to arrays with a canonical order of states and classes.

  Raises:
    UserError: the language is empty, or the table would be too large.
  """
  if not dfa.rows:
    raise UserError(
      f'the {budget.name} allows no text that this vocabulary can write; '
      'loosen it, or use text.vocabulary=byte'
    )
  budget.check_table(len(dfa.rows), alphabet.size)
  old_class = alphabet.class_of(dfa.classes)
  present, first_id = np.unique(old_class, return_index=True)
  order = present[np.argsort(first_id)]
  columns = list(zip(*dfa.rows, strict=True))
  # Equal columns become one class; a column of -1 becomes class -1.
  number: dict[tuple[int, ...], int] = {}
  renamed = np.full(len(dfa.classes) + 1, _NONE, np.int32)
  for k in order[order >= 0].tolist():
    if max(columns[k]) >= 0:
      renamed[k] = number.setdefault(columns[k], len(number))
  rows = list(zip(*number, strict=True)) or [()] * len(dfa.rows)
  states = _nearest_first(rows)
  rank = np.full(len(states) + 1, _NONE, np.int32)
  rank[states] = np.arange(len(states))
  table = np.array([rows[s] for s in states], np.int32)
  return _freeze(
    renamed[old_class],
    rank[table.reshape(len(states), len(number))],
    np.array(dfa.accepting)[states],
    np.array(dfa.distance, np.int32)[states],
    budget.work,
  )


def _nearest_first(rows: list[tuple[int, ...]]) -> list[int]:
  """States in breadth-first order, successors in the order of classes."""
  states = dict.fromkeys([0])
  queue = [0]
  for state in queue:  # grows during the loop
    for target in rows[state]:
      if target >= 0 and target not in states:
        states[target] = None
        queue.append(target)
  return queue


def _freeze(
  token_class: np.ndarray,
  class_next: np.ndarray,
  accepting: np.ndarray,
  distance: np.ndarray,
  work: int,
) -> Automaton:
  """Derives `forced`, makes all arrays read-only and builds the automaton."""
  lowest = np.unique(token_class, return_index=True)[1]
  lowest = lowest[token_class[lowest] >= 0]
  sizes = np.bincount(token_class[token_class >= 0], minlength=len(lowest))
  allowed = class_next >= 0
  forced = np.full(len(accepting), _NONE, np.int32)
  single = ~accepting & (allowed @ sizes == 1)
  if single.any():
    forced[single] = lowest[allowed[single].argmax(axis=1)]
  arrays = (token_class, class_next, accepting, distance, forced)
  for array in arrays:
    array.flags.writeable = False
  return Automaton(*arrays, work)


def intersect(*automata: Automaton) -> Automaton:
  """The automaton of the texts that all the given ones allow.

  Raises:
    UserError: no automaton is given, no text is allowed by all, the
      vocabularies differ in size, or the result exceeds the budget.
  """
  if not automata:
    raise UserError('nothing to intersect; give at least one constraint')
  sizes = {len(automaton.token_class) for automaton in automata}
  if len(sizes) > 1:
    raise UserError(
      f'constraints over vocabularies of {sorted(sizes)} ids cannot be '
      'combined; compile them for one vocabulary'
    )
  budget = Budget('combination of constraints')
  result = _to_dfa(automata[0])
  for automaton in automata[1:]:
    result = dfas.intersection(result, _to_dfa(automaton), budget)
  return from_dfa(result, Alphabet.of_ids(sizes.pop()), budget)


def _to_dfa(automaton: Automaton) -> Dfa:
  """Converts an automaton back to a DFA over token ids."""
  classes = []
  for k in range(automaton.class_next.shape[1]):
    ids = np.flatnonzero(automaton.token_class == k).tolist()
    classes.append(union((i, i) for i in ids))
  return Dfa(
    automaton.class_next.tolist(),
    automaton.accepting.tolist(),
    automaton.distance.tolist(),
    tuple(classes),
  )
