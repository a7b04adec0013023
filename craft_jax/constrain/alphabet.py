"""The characters or bytes of a vocabulary and their token ids."""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from craft_jax.constrain.intervals import Intervals
from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Alphabet:
  """Integers that automata read, in ascending order, and their token ids.

  Attributes:
    values: code points, bytes or token ids.
    ids: token id of each value.
    size: vocabulary size, special tokens included.
    is_utf8: whether values are the bytes of UTF-8.
  """

  values: list[int]
  ids: np.ndarray
  size: int
  is_utf8: bool = False

  @staticmethod
  def of(vocabulary: Vocabulary) -> 'Alphabet':
    """The bytes or characters of a vocabulary, without special tokens."""
    if vocabulary.kind == 'byte':
      return Alphabet(
        list(range(256)), np.arange(256), vocabulary.size, is_utf8=True
      )
    codes = utf8.code_points(vocabulary.chars)
    order = np.argsort(codes)
    return Alphabet(codes[order].tolist(), order, vocabulary.size)

  @staticmethod
  def of_ids(size: int) -> 'Alphabet':
    """The token ids themselves."""
    return Alphabet(list(range(size)), np.arange(size), size)

  def occurs(self, low: int, high: int) -> bool:
    """Whether a value lies in the inclusive interval."""
    at = bisect.bisect_left(self.values, low)
    return at < len(self.values) and self.values[at] <= high

  def class_of(self, classes: Sequence[Intervals]) -> np.ndarray:
    """Class of each token id, int32 `[size]`; -1 for none."""
    found = np.full(self.size, -1, np.int32)
    for k, intervals in enumerate(classes):
      for low, high in intervals:
        start = bisect.bisect_left(self.values, low)
        stop = bisect.bisect_right(self.values, high)
        found[self.ids[start:stop]] = k
    return found
