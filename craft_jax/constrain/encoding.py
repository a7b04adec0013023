"""Automaton transitions for the UTF-8 encodings of a set of code points.

The byte ranges are those of the Unicode Standard, table 3-7. A character is a
lead byte and up to three bytes of six bits each, so a set is divided into
blocks of 64, 4096 and 262144 code points; equal blocks share a place.
"""

from collections.abc import Callable

from craft_jax.constrain.intervals import (
  SCALARS,
  Intervals,
  intersection,
  union,
)

# First and last code point, continuation bytes, bits added to the lead byte.
_LENGTHS = (
  (0x0, 0x7F, 0, 0x00),
  (0x80, 0x7FF, 1, 0xC0),
  (0x800, 0xFFFF, 2, 0xE0),
  (0x10000, 0x10FFFF, 3, 0xF0),
)

_BLOCK_WORK = 6  # operations per block or interval
# (from, bytes, to) between places; a character begins at place 0, ends at 1.
Steps = list[tuple[int, Intervals, int]]


def steps_of(intervals: Intervals, spend: Callable[[int], None]) -> Steps:
  """Transitions that encode one character of a set; surrogates have none.

  Args:
    intervals: code points.
    spend: called with numbers of operations, such as `Budget.spend`.
  """
  if intervals and intervals[-1][1] < 0x80:
    return [(0, intervals, 1)]
  steps: Steps = []
  places: dict[tuple[int, Intervals], int] = {}

  def place_of(further: int, rest: Intervals) -> int:
    """The place from which `further` bytes encode one of `rest`."""
    if not further:
      return 1
    key = further, rest
    if key not in places:
      places[key] = len(places) + 2
      add_steps(places[key], further - 1, 0x80, rest)
    return places[key]

  def add_steps(place: int, further: int, base: int, codes: Intervals) -> None:
    """Adds a transition for each group of equal blocks."""
    bytes_of: dict[Intervals, list[tuple[int, int]]] = {}
    for block, rest in _blocks(codes, 6 * further):
      spend(_BLOCK_WORK)
      bytes_of.setdefault(rest, []).append((base + block, base + block))
    for rest, pairs in bytes_of.items():
      steps.append((place, union(pairs), place_of(further, rest)))

  valid = intersection(intervals, SCALARS)
  spend(_BLOCK_WORK * (4 * len(valid) + 40))
  for low, high, further, base in _LENGTHS:
    add_steps(0, further, base, intersection(valid, ((low, high),)))
  return steps


def _blocks(codes: Intervals, bits: int) -> list[tuple[int, Intervals]]:
  """Blocks of 2**bits code points that overlap the set, and the overlaps."""
  blocks: dict[int, list[tuple[int, int]]] = {}
  last = (1 << bits) - 1
  for low, high in codes:
    for block in range(low >> bits, (high >> bits) + 1):
      start = block << bits
      pair = max(low - start, 0), min(high - start, last)
      blocks.setdefault(block, []).append(pair)
  return [(block, tuple(pairs)) for block, pairs in blocks.items()]
