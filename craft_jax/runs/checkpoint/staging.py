"""Steps in stores that Orbax cannot open: copied from and to the local disk.

Orbax takes local folders and gs://. Elsewhere a step is saved into a local
folder and sent file by file. `files.json`, sent last and deleted first, makes
it a step; what lacks it is what a kill left. To be read, a step is fetched.
"""

import contextlib
import hashlib
import os
import shutil

from etils import epath

from craft_jax.errors import UserError
from craft_jax.runtime import files

FILES = 'files.json'
_SLACK = 1 << 20  # bytes


class NoRoom(UserError):
  """There is no room for a copy: nothing is known of what would be read."""


def is_staged(path: epath.PathLike) -> bool:
  """Whether Orbax cannot open what is there."""
  return files.is_remote(path) and not os.fspath(path).startswith('gs://')


def local(step: epath.Path) -> epath.Path:
  """The folder of a step as Orbax can open it: a copy, if it must be.

  A copy replaces the one before and goes with the program.

  Raises:
    NoRoom: there is none for it.
    FileNotFoundError: it is no step, or has gone.
  """
  if not is_staged(step):
    return step
  sums = (step / FILES).read_bytes()
  name = hashlib.sha256(os.fspath(step).encode() + sums).hexdigest()[:16]
  copies = files.scratch() / 'steps'
  if not (copies / name).exists():
    shutil.rmtree(copies, ignore_errors=True)
    _fetch(step, files.LocalPath(copies / 'part'))
    (copies / 'part').rename(copies / name)
  return files.LocalPath(copies / name)


def place_to_save(step: int) -> epath.Path:
  """An empty place for a step that is to be sent."""
  place = files.LocalPath(files.scratch() / 'saves' / str(step))
  shutil.rmtree(place, ignore_errors=True)
  place.parent.mkdir(exist_ok=True)
  return place


def room() -> int:
  """Bytes that are free where copies are."""
  return shutil.disk_usage(files.scratch()).free


def send(place: epath.Path, step: epath.Path) -> None:
  """Copies all files of a step, which is none before it has `files.json`."""
  with contextlib.suppress(FileNotFoundError):
    step.rmtree()
  for file in walk(place):
    _copy(file, step / file.relative_to(place))
  shutil.rmtree(place)


def delete(step: epath.Path) -> None:
  """Deletes a step; what a kill leaves of it is none."""
  with contextlib.suppress(FileNotFoundError):
    (step / FILES).unlink()
  step.rmtree()


def walk(folder: epath.Path) -> list[epath.Path]:
  """The files at any depth, in order."""
  found = []
  for path in sorted(folder.iterdir()):
    found += walk(path) if path.is_dir() else [path]
  return found


def _fetch(step: epath.Path, folder: epath.Path) -> None:
  there = walk(step)
  size = sum(file.stat().length for file in there)
  folder.mkdir(parents=True)
  if size + _SLACK > (free := room()):
    raise NoRoom(
      f'{step} is read from a copy of {size / 1e6:,.1f} MB, and '
      f'{files.scratch().parent} has {free / 1e6:,.1f} MB; set TMPDIR to a '
      'folder with room'
    )
  for file in there:
    _copy(file, folder / file.relative_to(step))


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  with source.open('rb') as old, target.open('wb') as new:
    shutil.copyfileobj(old, new, 1 << 22)
