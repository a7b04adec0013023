"""Which checkpoints of a run stay on the disk."""

from collections.abc import Sequence

from craft_jax.config.settings import Checkpoint


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


def most(saving: Checkpoint) -> int:
  """How many checkpoints there are at once at most, one being written."""
  return saving.keep + 1 + (saving.every > 0) + 1  # the best, a regular one
