"""Reading a file that grows, and caches of what was read so far.

A cache remembers how far it read and the bytes before that place. While those
are still there only what came since is read; else it starts over.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

_TAIL = 256  # bytes compared; a row has its own time in it
_BLOCK = 64 << 20


def goes_on(path: pathlib.Path, offset: int, tail: bytes) -> bool:
  """Whether the bytes before `offset` are still `tail`."""
  if offset <= 0:
    return offset == 0
  with open(path, 'rb') as file:
    file.seek(max(offset - _TAIL, 0))
    return file.read(min(offset, _TAIL)) == tail


def whole_lines(path: pathlib.Path, offset: int) -> Iterator[tuple[bytes, int]]:
  """Blocks of whole lines from `offset` on, and where each block ends.

  What follows the last newline is an incomplete row and is left for later. A
  line longer than a block ends the reading.
  """
  with open(path, 'rb') as file:
    file.seek(offset)
    while data := file.read(_BLOCK):
      end = data.rfind(b'\n') + 1
      if not end:
        return
      offset += end
      yield data[:end], offset
      file.seek(offset)


def tail_of(block: bytes, before: bytes = b'') -> bytes:
  """The last bytes of a block and what came before it, for `goes_on`."""
  return (before + block[-_TAIL:])[-_TAIL:]


def keep(path: pathlib.Path, data: bytes) -> None:
  """Writes a cache whole, or not at all where that cannot be.

  Not flushed to disk: a cache that is lost is made again.
  """
  with contextlib.suppress(OSError):
    handle, name = tempfile.mkstemp(prefix=f'{path.name}.', dir=path.parent)
    try:
      with os.fdopen(handle, 'wb') as file:
        file.write(data)
      os.chmod(name, 0o644)
      os.replace(name, path)
    except BaseException:
      os.unlink(name)
      raise
