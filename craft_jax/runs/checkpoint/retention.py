"""Which checkpoints of a run stay on the disk."""

from collections.abc import Sequence


def kept(
  steps: Sequence[int], best: int | None, keep: int, every: int
) -> set[int]:
  """The steps that stay once a save is whole; the others are deleted.

  Args:
    steps: whole checkpoints, ascending.
    best: the one of the least validation loss.
    keep: latest ones kept.
    every: the latest multiple of this is kept too; 0 is none.
  """
  regular = [step for step in steps if every and step % every == 0]
  found = {*steps[-keep:], *regular[-1:], best}
  return {step for step in found if step is not None}


def most(keep: int, every: int) -> int:
  """How many checkpoints there are at once at most, one being written."""
  return keep + 1 + (every > 0) + 1  # of `kept`, the best and a regular one
