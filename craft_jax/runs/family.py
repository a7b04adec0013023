"""Which run started from the weights of which."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from craft_jax.errors import UserError
from craft_jax.runs import listing
from craft_jax.runtime import files


class Member(NamedTuple):
  """A run in its family.

  Attributes:
    run: absolute path of its folder.
    step: step of the parent whose weights it started from; None of a run that
      started from none.
    children: runs that started from it.
  """

  run: str
  step: int | None
  children: 'list[Member]'


def families(runs: Sequence[listing.Run]) -> list[Member]:
  """The runs that have parents or children here, below their first ancestors.

  Ancestors that are not among the runs are read from their folders, as far as
  these are still there.
  """
  parents: dict[str, tuple[str, int]] = {}
  for run in runs:
    name = files.absolute(run.name)
    for ancestor, step in _ancestors(run.metadata):
      if name in parents or ancestor == name:
        break
      parents[name] = ancestor, step
      name = ancestor

  def member(run: str, step: int | None) -> Member:
    children = [
      member(child, from_step)
      for child, (parent, from_step) in sorted(parents.items())
      if parent == run
    ]
    return Member(run, step, children)

  roots = {ancestor for ancestor, _ in parents.values()} - parents.keys()
  return [member(root, None) for root in sorted(roots)]


def _ancestors(metadata: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
  """Folder and step of the parent, of its parent, and so on."""
  while parent := listing.parent_of(metadata):
    yield parent['run'], parent['step']
    try:
      if not listing.is_run(files.as_path(parent['run'])):
        return
      metadata = listing.load(parent['run']).metadata
    except (UserError, OSError):
      return
