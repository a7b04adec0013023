"""Files that are whole or absent: write beside, flush to disk, rename."""

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import pathlib
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, TypeAlias

from etils import epath

from craft_jax.errors import UserError
from craft_jax.runtime import object_stores

AnyPath: TypeAlias = pathlib.Path | epath.Path
_SCHEME = re.compile('[A-Za-z][A-Za-z0-9+.-]*://')
# What paths of epath make of URLs, or take for them.
_NEARLY = re.compile('(gs|s3|az|hf|file|https?):/|/+(gs|s3|az|hf)(/|$)')
_SCRATCH = 'craft-store-'
_LOCKS: list[IO[str]] = []
_PATTERN = re.compile(r'[*?\[]')  # what the libraries of stores expand
# No file can be made beside this one, or none may take its name: a folder
# that is read-only, a file that is mounted by itself.
_ONLY_IN_PLACE = (
  errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV,
)  # fmt: skip


def is_remote(path: epath.PathLike) -> bool:
  """Whether `path` is a URL, of an object store such as `gs://`."""
  return _SCHEME.match(os.fspath(path)) is not None


def as_path(path: epath.PathLike) -> AnyPath:
  """A path that reads where `path` is: here, or in an object store."""
  return epath.Path(path) if is_remote(path) else pathlib.Path(path)


def check_place(path: epath.PathLike, name: str) -> None:
  """Raises UserError unless `path` is local or in a store that works here.

  Args:
    path: as the user gave it.
    name: of the flag or setting it was given as.
  """
  if not is_remote(path) and not _NEARLY.match(os.fspath(path)):
    return
  if not re.match('(gs|s3)://[^/]', os.fspath(path)):
    raise UserError(
      f'{name}={path} is neither a folder nor gs://BUCKET/FOLDER or '
      's3://BUCKET/FOLDER; other object stores cannot be used'
    )
  # Removing gs://bucket/a[1] would remove gs://bucket/a1.
  if found := _PATTERN.search(os.fspath(path)):
    raise UserError(
      f'{name}={path} has {found[0]!r}, which in an object store stands for '
      'other names; give a folder without it'
    )
  object_stores.load(os.fspath(path), name)


def size(path: AnyPath) -> int:
  """Bytes of a file."""
  if isinstance(path, pathlib.Path):
    return path.stat().st_size
  return path.stat().length


@functools.cache
def scratch() -> pathlib.Path:
  """A local folder for copies of what is in a store; goes with the program.

  What killed programs left goes too.
  """
  folder = tempfile.TemporaryDirectory(prefix=_SCRATCH)
  atexit.register(folder.cleanup)
  here = pathlib.Path(folder.name)
  # The kernel lets go of the lock when the program ends, however it ends.
  lock = (here / '.new').open('w')
  fcntl.flock(lock, fcntl.LOCK_EX)
  _LOCKS.append(lock)
  (here / '.new').rename(here / '.lock')
  for other in here.parent.glob(f'{_SCRATCH}*/.lock'):
    with contextlib.suppress(OSError), other.open() as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(other.parent)
  return here


def nearest_folder(path: epath.PathLike) -> pathlib.Path:
  """A local folder, or the nearest above it that there is."""
  folder = pathlib.Path(path).expanduser().absolute()
  while not folder.exists():
    folder = folder.parent
  return folder


def check_local(path: epath.PathLike, name: str) -> None:
  """Raises UserError if `path` is a URL."""
  if is_remote(path):
    raise UserError(f'{name}={path} must be on this machine; copy it here')


class LocalPath(type(epath.Path('/'))):  # type: ignore[misc]
  """A local path that takes its own name literally.

  `epath` pastes a folder and a pattern together and hands both to `glob`, so
  that Orbax finds nothing in a folder called `lr=[0.1]`. What is derived from
  this path (`/`, `parent`) is one of these too.
  """

  def glob(self, pattern: str) -> Iterator['LocalPath']:
    """The files below this folder that match."""
    return (type(self)(p) for p in pathlib.Path(self).glob(pattern))


def check_output(path: str, flag: str, *inputs: str) -> None:
  """Looks at what a user names as an output before the work, not after.

  Args:
    path: where the output will go.
    flag: the flag that says so, for messages.
    inputs: files that are read; writing over them would lose them.

  Raises:
    UserError: it is a folder, has no folder to be in, or is an input.
  """
  if is_remote(path):
    check_place(path, flag)
    return
  if os.path.isdir(path) or path.endswith(os.sep):
    raise UserError(f'{flag}={path} is a folder; give the name of a file')
  folder = os.path.dirname(path) or '.'
  if not os.path.isdir(folder):
    raise UserError(f'{flag}={path}: there is no folder {folder}; make it')
  for name in inputs:
    both = os.path.isfile(name) and os.path.isfile(path)
    if both and os.path.samefile(name, path):
      raise UserError(
        f'{flag}={path} is the input {name} itself; give another name'
      )


def write_atomic(path: epath.PathLike, data: str | bytes) -> None:
  """Writes `data` (text as UTF-8) so that no reader ever sees a part of it.

  An object store replaces an object as a whole by itself; elsewhere the data
  goes to a hidden file in the same folder, which then takes the name. Links
  are followed and stay. A file that exists keeps its mode and, where that is
  allowed, its owner; a new one obeys the umask. A hard link is separated
  from its other names, which keep the old data.

  What exists and is no regular file (a device, a pipe, `/dev/stdout`) is
  opened and written; so is a file in a folder that takes no other.

  Raises:
    OSError: the folder is missing, read-only or full, or `path` is a folder;
      a regular file is then as before. `StoreError` of an object store.
  """
  data = data.encode() if isinstance(data, str) else data
  if is_remote(path):
    check_place(path, 'the file')
    with object_stores.failing_as_os_errors():
      epath.Path(path).write_bytes(data)
    return
  name = os.fspath(path)
  try:
    _write_local(name, data)
  except BrokenPipeError:
    raise
  except OSError as e:  # say the name that was asked for
    raise OSError(e.errno, e.strerror, name) from e


def _write_local(name: str, data: bytes) -> None:
  own = _own_descriptor(name)
  if own is not None:
    # Through the descriptor itself: its place in a redirected file is kept.
    for stream in (sys.stdout, sys.stderr):
      if stream is not None:
        stream.flush()
    _fill(os.dup(own), data)
    return
  old = None
  with contextlib.suppress(FileNotFoundError):
    old = os.stat(name)
  if old is not None and stat.S_ISDIR(old.st_mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
  if old is not None and not stat.S_ISREG(old.st_mode):
    _fill(os.open(name, os.O_WRONLY | os.O_NOCTTY), data)
    return
  target = os.path.realpath(name) if os.path.islink(name) else name
  try:
    _replace(target, data, old)
  except OSError as e:
    if old is None or e.errno not in _ONLY_IN_PLACE:
      raise
    _fill(os.open(target, os.O_WRONLY | os.O_TRUNC), data)


def is_open_stream(path: str) -> bool:
  """Whether it stands for an open file of this process, as `/dev/stdout`."""
  return _own_descriptor(path) is not None


def _own_descriptor(name: str) -> int | None:
  """The open file of this process that `/dev/stdout` or `/dev/fd/N` is."""
  for _ in range(40):  # as many links as Linux follows
    folder, last = os.path.split(os.path.abspath(name))
    folder = os.path.realpath(folder)
    # Linux keeps them in /proc, macOS in /dev/fd.
    if folder in (f'/proc/{os.getpid()}/fd', '/dev/fd') and last.isdecimal():
      return int(last)
    if not os.path.islink(name):
      return None
    name = os.path.join(folder, os.readlink(name))
  return None


def _replace(target: str, data: bytes, old: os.stat_result | None) -> None:
  folder, last = os.path.split(target)
  folder = folder or os.curdir
  # A long name is cut, so that the hidden one is allowed too.
  short = os.fsdecode(os.fsencode(last)[:200])
  temporary = os.path.join(folder, f'.{short}.{secrets.token_hex(4)}')
  mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
  descriptor = os.open(temporary, flags, mode)
  try:
    if old is not None:
      with contextlib.suppress(OSError):  # only root gives files away
        os.fchown(descriptor, old.st_uid, old.st_gid)
      os.fchmod(descriptor, mode)
    _fill(descriptor, data)
    os.replace(temporary, target)
  except BaseException:
    os.unlink(temporary)
    raise
  # The rename itself survives a power cut only once the folder is flushed.
  # A folder may be written but not listed: then that is left to the system.
  with contextlib.suppress(PermissionError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _fill(descriptor: int, data: bytes) -> None:
  """Writes and closes; what is a regular file is on disk then."""
  with os.fdopen(descriptor, 'wb') as f:
    f.write(data)
    f.flush()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
      os.fsync(descriptor)
