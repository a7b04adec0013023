"""Reads a recorded trace: the events that say what a device did, and when."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jax.profiler import ProfileData

# A device's plane may show the same work in several lines (steps, modules,
# operations): of a TPU this one counts, of a GPU its streams.
_OPERATIONS = 'XLA Ops'
_DEVICE = re.compile(r'/device:\w+:(\d+)')


@dataclasses.dataclass(frozen=True)
class Event:
  """Something a thread, a stream or a core did.

  Attributes:
    name: what the trace calls it.
    op: the instruction of the program that ran, or ''.
    start: nanoseconds.
    duration: nanoseconds.
    thread: the line of the trace it is on.
    device: number of the device; -1 if none is told.
    module: name of the program, or '' if none is told.
  """

  name: str
  op: str
  start: float
  duration: float
  thread: str
  device: int = -1
  module: str = ''

  @property
  def end(self) -> float:
    """Nanoseconds."""
    return self.start + self.duration


def read(path: pathlib.Path) -> list[Event]:
  """The events of a `.xplane.pb`, or of the newest one below a folder.

  Raises:
    FileNotFoundError: there is none.
  """
  if path.is_dir():
    found = sorted(path.rglob('*.xplane.pb'), key=lambda p: p.stat().st_mtime)
    if not found:
      raise FileNotFoundError(f'no trace (*.xplane.pb) below {path}')
    path = found[-1]
  return list(events(ProfileData.from_serialized_xspace(path.read_bytes())))


def events(data: ProfileData) -> Iterator[Event]:
  """What ran on devices, and what stands below it; other lines are left out.

  Which lines those are is told by what they hold, not by their names, as these
  differ: an operation names its instruction (`hlo_op`), on the threads of a
  CPU and on the streams of a GPU.
  """
  for plane in data.planes:
    on_device = _DEVICE.match(plane.name)
    number = int(on_device[1]) if on_device else -1
    lines = list(plane.lines)
    if any(line.name == _OPERATIONS for line in lines):
      lines = [line for line in lines if line.name == _OPERATIONS]
    for index, line in enumerate(lines):
      thread = f'{plane.name}/{index}/{line.name}'
      found = [_event(event, thread, number) for event in line.events]
      if any(event.op for event in found):
        yield from found


def _event(event: Any, thread: str, number: int) -> Event:
  stats = dict(event.stats)
  device = stats.get('device_ordinal', number)
  op = str(stats.get('hlo_op', ''))
  if not op and number >= 0:
    op = event.name  # a copy to or from the host: no instruction, but work
  return Event(
    name=event.name,
    op=op.split(' = ')[0].lstrip('%'),
    start=event.start_ns,
    duration=event.duration_ns,
    thread=thread,
    device=int(device),
    module=str(stats.get('hlo_module', '')).partition('(')[0],
  )
