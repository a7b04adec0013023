"""Sets of integers (code points, bytes, token ids) as sorted intervals."""

from collections.abc import Callable, Iterable, Sequence

from craft_jax.data.text.utf8 import MAX_CODE_POINT

# Inclusive, ascending, neither overlapping nor adjacent.
Intervals = tuple[tuple[int, int], ...]

# All code points but the surrogates, which UTF-8 cannot encode.
SCALARS: Intervals = ((0, 0xD7FF), (0xE000, MAX_CODE_POINT))


def union(pairs: Iterable[tuple[int, int]]) -> Intervals:
  """Union of inclusive intervals, given in any order."""
  merged: list[tuple[int, int]] = []
  for low, high in sorted(pairs):
    if merged and low <= merged[-1][1] + 1:
      if high > merged[-1][1]:
        merged[-1] = merged[-1][0], high
    else:
      merged.append((low, high))
  return tuple(merged)


def complement(intervals: Intervals) -> Intervals:
  """All code points that are not in the set, surrogates included."""
  edges = [-1, *(edge for pair in intervals for edge in pair)]
  edges.append(MAX_CODE_POINT + 1)
  return tuple(
    (before + 1, after - 1)
    for before, after in zip(edges[::2], edges[1::2], strict=True)
    if before + 1 < after
  )


def intersection(a: Intervals, b: Intervals) -> Intervals:
  """Intersection of two sets of code points."""
  return complement(union([*complement(a), *complement(b)]))


def of_text(characters: str) -> Intervals:
  """Code points of the characters of a text."""
  return union((ord(c), ord(c)) for c in characters)


def contains(intervals: Intervals, value: int) -> bool:
  """Whether the set contains `value`."""
  return any(low <= value <= high for low, high in intervals)


def partition(
  sets: Sequence[Intervals], occurs: Callable[[int, int], bool]
) -> dict[int, Intervals]:
  """Partitions the union of sets so that no set divides a part.

  Args:
    sets: sets of integers.
    occurs: whether the alphabet has an integer in an inclusive interval;
      intervals without any are left out.

  Returns:
    The parts by key; bit k of a key says whether the part lies in `sets[k]`.
  """
  flips: dict[int, int] = {}  # bound: sets that begin or end at it, as bits
  for k, intervals in enumerate(sets):
    for low, high in intervals:
      flips[low] = flips.get(low, 0) ^ 1 << k
      flips[high + 1] = flips.get(high + 1, 0) ^ 1 << k
  parts: dict[int, list[tuple[int, int]]] = {}
  inside = start = 0
  for bound in sorted(bound for bound, flip in flips.items() if flip):
    if inside and occurs(start, bound - 1):
      parts.setdefault(inside, []).append((start, bound - 1))
    inside ^= flips[bound]
    start = bound
  return {bits: tuple(pairs) for bits, pairs in parts.items()}
