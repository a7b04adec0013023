"""The tokens that a vocabulary can write, as integers."""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from craft_jax.constrain.intervals import Intervals
from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Alphabet:
  """Tokens in ascending order, and their ids.

  Attributes:
    values: code points, bytes or ids.
    ids: of the values.
    size: ids of the vocabulary, those included that are never allowed.
    is_utf8: whether a character is several tokens.
  """

  values: list[int]
  ids: np.ndarray
  size: int
  is_utf8: bool = False

  @staticmethod
  def of(vocabulary: Vocabulary) -> 'Alphabet':
    """The bytes or the characters of a vocabulary, without its specials."""
    if vocabulary.kind == 'byte':
      return Alphabet(
        list(range(256)), np.arange(256), vocabulary.size, is_utf8=True
      )
    codes = utf8.code_points(vocabulary.chars)
    order = np.argsort(codes)
    return Alphabet(codes[order].tolist(), order, vocabulary.size)

  @staticmethod
  def of_ids(size: int) -> 'Alphabet':
    """The ids themselves."""
    return Alphabet(list(range(size)), np.arange(size), size)

  def occurs(self, low: int, high: int) -> bool:
    """Whether a token lies in the interval."""
    at = bisect.bisect_left(self.values, low)
    return at < len(self.values) and self.values[at] <= high

  def class_of(self, classes: Sequence[Intervals]) -> np.ndarray:
    """The class of each id, `[size]` int32; -1 if it is in none."""
    found = np.full(self.size, -1, np.int32)
    for k, intervals in enumerate(classes):
      for low, high in intervals:
        start = bisect.bisect_left(self.values, low)
        stop = bisect.bisect_right(self.values, high)
        found[self.ids[start:stop]] = k
    return found
