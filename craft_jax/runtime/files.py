"""Paths, local and in object stores, and atomic writes."""

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
# Forms that epath turns URLs into, or reads as URLs.
_NEARLY = re.compile('(gs|s3|az|hf|file|https?):/|/+(gs|s3|az|hf)(/|$)')
_SCRATCH = 'craft-store-'
_LOCKS: list[IO[str]] = []
_PATTERN = re.compile(r'[*?\[]')  # globs that store libraries expand
# A temporary file cannot be created next to the target, or not renamed to it,
# as in a read-only folder or for a file that is a mount point.
_ONLY_IN_PLACE = (
  errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV,
)  # fmt: skip


def is_remote(path: epath.PathLike) -> bool:
  """Whether `path` is a URL, such as `gs://bucket/folder`."""
  return _SCHEME.match(os.fspath(path)) is not None


def as_path(path: epath.PathLike) -> AnyPath:
  """A path object for a local path or a URL of an object store."""
  return epath.Path(path) if is_remote(path) else pathlib.Path(path)


def absolute(path: epath.PathLike) -> str:
  """The absolute form of a local path; a URL as it is."""
  return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def check_place(path: epath.PathLike, name: str) -> None:
  """Raises `UserError` unless `path` is local or in a supported object store.

  `name` is the flag or setting that the error names.
  """
  if not is_remote(path) and not _NEARLY.match(os.fspath(path)):
    return
  if not re.match('(gs|s3)://[^/]', os.fspath(path)):
    raise UserError(
      f'{name}={path} is neither a folder nor gs://BUCKET/FOLDER or '
      's3://BUCKET/FOLDER; other object stores cannot be used'
    )
  # Globs are expanded: removing gs://bucket/a[1] would remove gs://bucket/a1.
  if found := _PATTERN.search(os.fspath(path)):
    raise UserError(
      f'{name}={path} has {found[0]!r}, which in an object store stands for '
      'other names; give a folder without it'
    )
  object_stores.load(os.fspath(path), name)


def size(path: AnyPath) -> int:
  """Size of a file in bytes, local or in an object store."""
  if isinstance(path, pathlib.Path):
    return path.stat().st_size
  return path.stat().length


@functools.cache
def scratch() -> pathlib.Path:
  """A temporary folder for local copies of objects, removed at exit.

  Also removes the folders of processes that were killed.
  """
  folder = tempfile.TemporaryDirectory(prefix=_SCRATCH)
  atexit.register(folder.cleanup)
  here = pathlib.Path(folder.name)
  # The kernel releases the lock when the process ends, however it ends.
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
  """Raises `UserError` if `path` is a URL."""
  if is_remote(path):
    raise UserError(f'{name}={path} must be on this machine; copy it here')


class LocalPath(type(epath.Path('/'))):  # type: ignore[misc]
  """A local path whose own name is not part of a glob pattern.

  `epath` passes folder and pattern to `glob` as one string, so that Orbax would
  find nothing in a folder called `lr=[0.1]`. Derived paths (`/`, `parent`) have
  this type as well.
  """

  def glob(self, pattern: str) -> Iterator['LocalPath']:
    """The files below this folder that match."""
    return (type(self)(p) for p in pathlib.Path(self).glob(pattern))


def check_output(path: str, flag: str, *inputs: str) -> None:
  """Checks the path of an output before the work starts.

  Args:
    path: output path.
    flag: flag it was given by, for error messages.
    inputs: input files, which must not be overwritten.

  Raises:
    UserError: it is a folder or an input, or its folder does not exist.
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
        f'{flag}={path} is the input {name} itself; give another path'
      )


def write_atomic(path: epath.PathLike, data: str | bytes) -> None:
  """Writes a file atomically; a `str` is encoded as UTF-8.

  Locally, data goes to a hidden file in the same folder, which is synced and
  renamed; object stores replace objects atomically. Symbolic links are
  followed. An existing file keeps its mode and, where permitted, its owner. Its
  other hard links keep the old data.

  Devices, pipes and `/dev/stdout` are opened and written instead, as are files
  in a folder where no file can be created.

  Raises:
    OSError: the folder is missing, read-only or full, or `path` is a folder; a
      regular file is then unchanged. Object stores raise `StoreError`.
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
  except OSError as e:  # report the given name, not the temporary file's
    raise OSError(e.errno, e.strerror, name) from e


def _write_local(name: str, data: bytes) -> None:
  own = _own_descriptor(name)
  if own is not None:
    # The descriptor itself keeps its position in a redirected file.
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
  """Whether `path` names an open file of this process, as `/dev/stdout`."""
  return _own_descriptor(path) is not None


def _own_descriptor(name: str) -> int | None:
  """Descriptor of this process that `/dev/stdout` or `/dev/fd/N` names."""
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
  # Truncated, so that the hidden name does not exceed the length limit.
  short = os.fsdecode(os.fsencode(last)[:200])
  temporary = os.path.join(folder, f'.{short}.{secrets.token_hex(4)}')
  mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
  descriptor = os.open(temporary, flags, mode)
  try:
    if old is not None:
      with contextlib.suppress(OSError):  # only root may change the owner
        os.fchown(descriptor, old.st_uid, old.st_gid)
      os.fchmod(descriptor, mode)
    _fill(descriptor, data)
    os.replace(temporary, target)
  except BaseException:
    os.unlink(temporary)
    raise
  # The rename survives a power failure only after an fsync of the folder, which
  # is not possible in a folder that may be written but not read.
  with contextlib.suppress(PermissionError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _fill(descriptor: int, data: bytes) -> None:
  """Writes data and closes the descriptor; a regular file is synced first."""
  with os.fdopen(descriptor, 'wb') as f:
    f.write(data)
    f.flush()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
      os.fsync(descriptor)
