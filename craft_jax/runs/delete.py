"""Finds what may be deleted of run directories, and deletes it."""

import dataclasses
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterable

from etils import epath

from craft_jax.errors import UserError
from craft_jax.runs import layout
from craft_jax.runs import listing as runs_lib
from craft_jax.runs.listing import Run, is_run
from craft_jax.runs.lock import is_held
from craft_jax.runtime import files

_STEP = re.compile(r'0|[1-9][0-9]*')
# Of `files.write_atomic` and `tail.keep`: a hidden name and eight letters.
_TEMPORARY = re.compile(r'\..*(json|jsonl|columns|diff)\.[a-z0-9_]{8}')
_OLD_SECONDS = 3600.0  # a file that is being written is younger


@dataclasses.dataclass(frozen=True)
class Item:
  """Something to delete.

  Attributes:
    path: a run directory, or a file in one.
    bytes: its size on disk.
    why: in a few words.
  """

  path: files.AnyPath
  bytes: int
  why: str


def size_of(path: files.AnyPath) -> int:
  """Bytes of a file, or of the files in a folder."""
  if not path.is_dir():
    return files.size(path)
  if not isinstance(path, pathlib.Path):
    return sum(size_of(inner) for inner in path.iterdir())
  total = 0
  for folder, _, names in os.walk(path):
    for name in names:
      try:
        total += os.lstat(os.path.join(folder, name)).st_size
      except OSError:
        continue  # gone meanwhile
  return total


def checkpoints(path: epath.PathLike) -> list[int]:
  """The steps that a run directory has checkpoints of, ascending."""
  folder = epath.Path(path) / layout.CHECKPOINTS
  if not folder.is_dir():
    return []
  names = [entry.name for entry in folder.iterdir()]
  return sorted(int(name) for name in names if _STEP.fullmatch(name))


def removable(path: files.AnyPath) -> Item:
  """A run directory to delete.

  Raises:
    UserError: it is no run, or it is going on; or it is in an object store and
      may be going on.
  """
  if not is_run(path):
    raise UserError(f'{path} is not a run directory; nothing was deleted')
  if is_held(path):
    raise UserError(f'{path} is going on; end it first; nothing was deleted')
  if files.is_remote(path) and runs_lib.load(path).status == layout.RUNNING:
    raise UserError(
      f'{path} says that it is going on, and an object store has no locks to '
      'tell; if it was killed, delete it with the tool of the store; nothing '
      'was deleted'
    )
  return Item(path, size_of(path), 'asked for')


def garbage(runs: Iterable[Run]) -> list[Item]:
  """Runs and files that no command can use any more.

  Runs that failed, were killed or stopped before their first checkpoint:
  nothing of them can be resumed or sampled. Of the others, what a kill left
  half-written (nothing is, in an object store). Runs that go on are not
  touched.
  """
  found = []
  for run in runs:
    if run.status == layout.RUNNING:
      continue
    path = files.as_path(run.name)
    if run.status != layout.FINISHED and not checkpoints(path):
      why = f'{run.status} at step {run.digest.step} without a checkpoint'
      found.append(Item(path, size_of(path), why))
      continue
    if not isinstance(path, pathlib.Path):
      continue
    for entry in sorted(path.iterdir()):
      if not _TEMPORARY.fullmatch(entry.name) or not entry.is_file():
        continue
      if time.time() - entry.stat().st_mtime > _OLD_SECONDS:
        found.append(Item(entry, size_of(entry), 'half-written'))
  return found


def delete(items: Iterable[Item]) -> None:
  """Deletes; a run that has started meanwhile is left, with an error.

  Raises:
    UserError: see `removable`.
  """
  for item in items:
    if item.path.is_dir():
      removable(item.path)
      if isinstance(item.path, pathlib.Path):
        shutil.rmtree(item.path)
      else:
        item.path.rmtree()
    else:
      item.path.unlink(missing_ok=True)
