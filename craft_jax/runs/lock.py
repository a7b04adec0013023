"""One process at a time writes a run directory."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import time
from typing import IO

from etils import epath

from craft_jax.errors import UserError
from craft_jax.runtime import files, strict_json

LOCK = '.lock'
_TRIES, _PAUSE = 5, 0.05  # `is_held` has it for a moment; seconds


class Lock:
  """Held from construction to `close`, or to the end of the process.

  The kernel lets go when the holder ends, however it ends. Object stores have
  no locks: there nothing is held.
  """

  def __init__(self, workdir: epath.PathLike):
    """Takes the lock of a folder, which is made if missing.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    self._file: IO[str] | None = None
    if files.is_remote(workdir):
      return
    folder = self._folder = pathlib.Path(workdir)
    # Innermost first; they go again if nothing is put into them.
    self._made = [
      path for path in (folder, *folder.parents) if not path.exists()
    ]
    try:
      folder.mkdir(parents=True, exist_ok=True)
      # Not truncated on opening: it names the process that holds it.
      file = open(folder / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115
    except OSError as e:
      raise UserError(
        f'cannot write to {folder}: {e.strerror or e}; mend the folder'
      ) from e
    try:
      _take(file)
    except BlockingIOError:
      holder = _holder(file)
      file.close()
      raise UserError(
        f'{folder} is in use by {holder}; wait for it, end it, or give another '
        '--workdir'
      ) from None
    except OSError as e:  # a network file system without locks
      print(
        f'craft: {folder} cannot be locked ({e.strerror}); see that no other '
        'run writes there',
        file=sys.stderr,
      )
    self._file = file
    with contextlib.suppress(OSError):  # on a full disk it holds all the same
      file.truncate(0)
      file.write(
        strict_json.dumps({'host': socket.gethostname(), 'pid': os.getpid()})
      )
      file.flush()

  def renew(self) -> None:
    """Takes the lock again where its file was removed or replaced.

    Raises:
      UserError: another process holds it by now.
    """
    if self._file is None:
      return
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(
        os.stat(self._folder / LOCK), os.fstat(self._file.fileno())
      ):
        return
    new = Lock(self._folder)
    self._file.close()
    self._file, self._made = new._file, new._made

  def close(self) -> None:
    """Lets go; folders that were made and stayed empty go too. Repeatable."""
    if self._file is None:
      return
    with contextlib.suppress(OSError):
      if self._made and os.listdir(self._made[0]) == [LOCK]:
        (self._made[0] / LOCK).unlink()
        for folder in self._made:
          folder.rmdir()
    with contextlib.suppress(OSError):
      self._file.close()
    self._file = None


def is_held(workdir: epath.PathLike) -> bool | None:
  """Whether a process writes the run directory; None where that cannot be told.

  Changes nothing: no file is made, and none stays locked.
  """
  if files.is_remote(workdir):
    return None
  try:
    with open(pathlib.Path(workdir) / LOCK, encoding='utf-8') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  except OSError:  # not ours to read, or a file system without locks
    return None
  return False


def _take(file: IO[str]) -> None:
  for _ in range(_TRIES - 1):
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      time.sleep(_PAUSE)
  return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file: IO[str]) -> str:
  """Who holds the lock, as far as the file says."""
  try:
    file.seek(0)
    found = json.loads(file.read())
    return f'process {found["pid"]} on {found["host"]}'
  except (OSError, ValueError, KeyError, TypeError):
    return 'another process'
