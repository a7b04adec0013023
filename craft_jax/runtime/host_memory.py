"""Memory available to this process, its peak, and OOM kills."""

import math
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

_PROC = pathlib.Path('/proc')
_CGROUP = pathlib.Path('/sys/fs/cgroup')
# Controller, limit and usage files of control groups version 2 and version 1.
_GROUP_FILES = (
  ('', 'memory.max', 'memory.current'),
  ('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes'),
)
_SIZE = re.compile(r'([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?) *(?:([kmgt])(i?))?b?')


class Room(NamedTuple):
  """Memory that is still available.

  Attributes:
    bytes: available bytes.
    source: what sets the limit, for messages.
  """

  bytes: float
  source: str


def room() -> Room | None:
  """Available memory per device of this process; None if it is unknown.

  For accelerators, JAX's limit. CPU devices share what the process can still
  allocate, see `host_room`.
  """
  import jax  # only here, because commands call the other functions early

  devices = jax.local_devices()
  if devices[0].platform != 'cpu':
    stats = [device.memory_stats() or {} for device in devices]
    left = [
      s['bytes_limit'] - s.get('bytes_in_use', 0)
      for s in stats
      if s.get('bytes_limit')
    ]
    return Room(min(left), "the device's memory") if left else None
  found = host_room()
  if found is None:
    return None
  return Room(found.bytes / len(devices), found.source)


def host_room() -> Room | None:
  """Memory that this process can still allocate; None if it is unknown.

  The least of the address space limit (`ulimit -v`), the control group's limit
  and the machine's free memory including swap.
  """
  found = min(_process_limits(), default=None)
  return None if found is None else Room(max(found.bytes, 0), found.source)


def _process_limits() -> Iterator[Room]:
  """Yields what each limit leaves to this process."""
  yield from _address_space()
  yield from _control_group()
  try:
    free = _fields(_PROC / 'meminfo')
    yield Room(free['MemAvailable'] + free.get('SwapFree', 0), 'free memory')
  except (OSError, KeyError, ValueError):  # not Linux
    return


def _address_space() -> Iterator[Room]:
  try:
    import resource
  except ImportError:  # on Windows
    return
  limit = resource.getrlimit(resource.RLIMIT_AS)[0]
  if limit == resource.RLIM_INFINITY:
    return
  try:
    used = _fields(_PROC / 'self' / 'status')['VmSize']
  except (OSError, KeyError, ValueError):
    return
  yield Room(limit - used, 'the address space limit (ulimit -v)')


def _control_group() -> Iterator[Room]:
  """Yields what the control groups of this process leave."""
  for name, most, used in _GROUP_FILES:
    for folder in _groups(name):
      try:
        limit = (folder / most).read_text().strip()
        left = int(limit) - int((folder / used).read_text())
      except (OSError, ValueError):  # the file is missing or holds 'max'
        continue
      yield Room(left, 'the control group')


def _groups(controller: str) -> Iterator[pathlib.Path]:
  root = _CGROUP / controller
  yield root
  try:
    lines = (_PROC / 'self' / 'cgroup').read_text().splitlines()
  except OSError:
    return
  for line in lines:
    _, names, path = line.split(':', 2)
    if path != '/' and controller in names.split(','):
      yield root / path.lstrip('/')


def reset_peak() -> int | None:
  """Resets the peak memory of this process; returns its current bytes.

  Returns None where that is not supported (before Linux 4.0).
  """
  try:
    (_PROC / 'self' / 'clear_refs').write_text('5')  # proc(5)
    return _fields(_PROC / 'self' / 'status')['VmRSS']
  except (OSError, KeyError, ValueError):
    return None


def peak() -> int | None:
  """Peak resident memory in bytes since `reset_peak`; None if unknown."""
  try:
    return _fields(_PROC / 'self' / 'status')['VmHWM']
  except (OSError, KeyError, ValueError):
    return None


def kills() -> int | None:
  """Processes killed by the OOM killer since boot; None if unknown."""
  counts = []
  for path in (_PROC / 'vmstat', _CGROUP / 'memory.events'):
    try:
      counts.append(_fields(path, scale=1)['oom_kill'])
    except (OSError, KeyError, ValueError):
      continue
  return sum(counts) if counts else None


def _fields(path: pathlib.Path, scale: int = 1024) -> dict[str, int]:
  """Parses lines of a name and a number, which is multiplied by `scale`."""
  found = {}
  for line in path.read_text().splitlines():
    words = line.replace(':', ' ').split()
    if len(words) > 1 and words[1].isdigit():
      found[words[0]] = int(words[1]) * scale
  return found


def parse_bytes(text: str) -> int:
  """Parses a size such as `8GiB`, `80GB`, `500 MB` or a number of bytes.

  Raises:
    ValueError: it is not a size, or less than a byte.
  """
  found = _SIZE.fullmatch(text.strip().lower())
  if not found:
    raise ValueError(text)
  number, unit, binary = found.groups()
  scale = 1024 if binary else 1000
  size = float(number) * scale ** (' kmgt'.index(unit or ' '))
  if not 1 <= size < math.inf:
    raise ValueError(text)
  return int(size)
