"""An LRU cache of compiled automata."""

import collections
import threading
from collections.abc import Callable, Hashable

from craft_jax.constrain.automaton import Automaton


class Cache:
  """A thread-safe LRU cache of automata.

  Two threads that miss the same key at once both compile it, rather than one
  waiting for the other. Errors are not cached.
  """

  def __init__(self, max_count: int, max_entries: int):
    """Creates an empty cache.

    Args:
      max_count: maximum number of automata.
      max_entries: maximum sum of table entries, states x tokens.
    """
    self._max_count = max_count
    self._max_entries = max_entries
    self._kept: collections.OrderedDict[Hashable, Automaton] = (
      collections.OrderedDict()
    )
    self._entries = 0
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._kept)

  def get(
    self, key: Hashable, compile_it: Callable[[], Automaton]
  ) -> Automaton:
    """Returns the automaton of a key, compiling it on a miss."""
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key]
    automaton = compile_it()
    with self._lock:
      if key not in self._kept:
        self._kept[key] = automaton
        self._entries += _entries(automaton)
      while (
        len(self._kept) > self._max_count or self._entries > self._max_entries
      ):
        _, oldest = self._kept.popitem(last=False)
        self._entries -= _entries(oldest)
    return automaton


def _entries(automaton: Automaton) -> int:
  return automaton.num_states * len(automaton.token_class)
