"""Files that are whole or absent: write beside, flush to disk, rename."""

import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from etils import epath

from craft_jax import extras
from craft_jax.errors import UserError

_SCHEME = re.compile('[A-Za-z][A-Za-z0-9+.-]*://')
# What paths of epath make of URLs, or take for them.
_NEARLY = re.compile('(gs|s3|az|hf|file|https?):/|/+(gs|s3|az|hf)(/|$)')


def is_remote(path: epath.PathLike) -> bool:
  """Whether `path` is a URL, of an object store such as `gs://`."""
  return _SCHEME.match(os.fspath(path)) is not None


def check_place(path: epath.PathLike, name: str) -> None:
  """Raises UserError unless `path` is local or in a store that works here.

  Args:
    path: as the user gave it.
    name: of the flag or setting it was given as.
  """
  if not is_remote(path) and not _NEARLY.match(os.fspath(path)):
    return
  if not re.match('gs://[^/]', os.fspath(path)):
    raise UserError(
      f'{name}={path} is neither a folder nor gs://BUCKET/FOLDER; of object '
      'stores only gs:// can be used'
    )
  with extras.needed(f'{name}={path}', 'remote'):
    import gcsfs  # noqa: F401


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


def write_atomic(path: epath.PathLike, data: str | bytes) -> None:
  """Writes `data` (text as UTF-8) so that no reader ever sees a part of it.

  An object store replaces an object as a whole by itself; elsewhere the data
  goes to a hidden file in the same folder, which then takes the name.

  Raises:
    OSError: the folder is missing, read-only or full; `path` is as before.
  """
  data = data.encode() if isinstance(data, str) else data
  if is_remote(path):
    check_place(path, 'the file')
    epath.Path(path).write_bytes(data)
    return
  folder, name = os.path.split(os.path.abspath(os.fspath(path)))
  try:
    handle, temporary = tempfile.mkstemp(prefix=f'.{name}.', dir=folder)
  except OSError as e:  # say the name that was asked for
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e
  try:
    with os.fdopen(handle, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, os.path.join(folder, name))
  except BaseException:
    os.unlink(temporary)
    raise
  # The rename itself survives a power cut only once the folder is flushed.
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
