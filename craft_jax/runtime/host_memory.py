"""How much memory there is where this program runs."""

import math
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

_PROC = pathlib.Path('/proc')
_CGROUP = pathlib.Path('/sys/fs/cgroup')
# The limit and what is used of it, in version 2 and 1 of control groups.
_GROUP_FILES = (
  ('', 'memory.max', 'memory.current'),
  ('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes'),
)
_SIZE = re.compile(r'([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?) *(?:([kmgt])(i?))?b?')


class Room(NamedTuple):
  """Memory that a device can still give.

  Attributes:
    bytes: on each device; the CPU devices of a process share what it gets.
    source: what sets the limit, in words.
  """

  bytes: float
  source: str


def room() -> Room | None:
  """What each device of this process can still give; None if nothing tells.

  Of an accelerator JAX's own limit. Of a CPU the least of what the address
  space limit (`ulimit -v`), the control group and the free memory of the
  machine, swap included, leave.
  """
  import jax  # not for the other functions: commands ask them early

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
  """What this process can still allocate on its host; None if nothing tells."""
  found = min(_process_limits(), default=None)
  return None if found is None else Room(max(found.bytes, 0), found.source)


def _process_limits() -> Iterator[Room]:
  """What each limit leaves to this process."""
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
  """Of the group of this process, as a container sees it, or by its path."""
  for name, most, used in _GROUP_FILES:
    for folder in _groups(name):
      try:
        limit = (folder / most).read_text().strip()
        left = int(limit) - int((folder / used).read_text())
      except (OSError, ValueError):  # not there, or 'max'
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
  """Forgets the peak size of this process; its size now, in bytes.

  None where the kernel (Linux 4.0) does not do that.
  """
  try:
    (_PROC / 'self' / 'clear_refs').write_text('5')  # proc(5)
    return _fields(_PROC / 'self' / 'status')['VmRSS']
  except (OSError, KeyError, ValueError):
    return None


def peak() -> int | None:
  """Most bytes that this process had in memory since `reset_peak`."""
  try:
    return _fields(_PROC / 'self' / 'status')['VmHWM']
  except (OSError, KeyError, ValueError):
    return None


def kills() -> int | None:
  """Processes that the kernel has killed for memory since the machine started.

  None where the kernel does not count them.
  """
  counts = []
  for path in (_PROC / 'vmstat', _CGROUP / 'memory.events'):
    try:
      counts.append(_fields(path, scale=1)['oom_kill'])
    except (OSError, KeyError, ValueError):
      continue
  return sum(counts) if counts else None


def _fields(path: pathlib.Path, scale: int = 1024) -> dict[str, int]:
  """Lines of a name and a number; kB become bytes."""
  found = {}
  for line in path.read_text().splitlines():
    words = line.replace(':', ' ').split()
    if len(words) > 1 and words[1].isdigit():
      found[words[0]] = int(words[1]) * scale
  return found


def parse_bytes(text: str) -> int:
  """`8GiB`, `80GB`, `500 MB` or a plain number of bytes.

  Raises:
    ValueError: no such size, or less than a byte.
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
