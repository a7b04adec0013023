"""UTF-8 of a set of code points, as steps from place to place.

Byte ranges of UTF-8: The Unicode Standard, table 3-7. A character is a lead
byte and up to three bytes with six bits each, so a set is cut into blocks of
64, 4096 and 262144 code points; equal blocks share a place.
"""

from collections.abc import Callable

from craft_jax.constrain.intervals import (
  SCALARS,
  Intervals,
  intersection,
  union,
)

# Code points, further bytes, and what is added to the top bits.
_LENGTHS = (
  (0x0, 0x7F, 0, 0x00),
  (0x80, 0x7FF, 1, 0xC0),
  (0x800, 0xFFFF, 2, 0xE0),
  (0x10000, 0x10FFFF, 3, 0xF0),
)

_BLOCK_WORK = 6  # of a block or an interval, in operations
# (from, bytes, to); 0 is where a character begins and 1 where it has ended.
Steps = list[tuple[int, Intervals, int]]


def steps_of(intervals: Intervals, spend: Callable[[int], None]) -> Steps:
  """The steps that write one character of the set; surrogates have none.

  Args:
    intervals: code points.
    spend: is told the work.
  """
  if intervals and intervals[-1][1] < 0x80:
    return [(0, intervals, 1)]
  steps: Steps = []
  places: dict[tuple[int, Intervals], int] = {}

  def place_of(further: int, rest: Intervals) -> int:
    """Where `further` bytes are left, which spell one of `rest`."""
    if not further:
      return 1
    key = further, rest
    if key not in places:
      places[key] = len(places) + 2
      add_steps(places[key], further - 1, 0x80, rest)
    return places[key]

  def add_steps(place: int, further: int, base: int, codes: Intervals) -> None:
    """A step for each group of equal blocks."""
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
  """The blocks of 2**bits that the set touches, and what it has in each."""
  blocks: dict[int, list[tuple[int, int]]] = {}
  last = (1 << bits) - 1
  for low, high in codes:
    for block in range(low >> bits, (high >> bits) + 1):
      start = block << bits
      pair = max(low - start, 0), min(high - start, last)
      blocks.setdefault(block, []).append(pair)
  return [(block, tuple(pairs)) for block, pairs in blocks.items()]
