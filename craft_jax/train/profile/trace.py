"""Reads the events of a recorded trace."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jax.profiler import ProfileData

# A device's plane may have the same work in several lines (steps, modules,
# operations). On a TPU only this line is read, on a GPU those of its streams.
_OPERATIONS = 'XLA Ops'
_DEVICE = re.compile(r'/device:\w+:(\d+)')


@dataclasses.dataclass(frozen=True)
class Event:
  """An event on a thread, stream or core.

  Attributes:
    name: name in the trace.
    op: name of the HLO instruction that ran, or ''.
    start: start in nanoseconds.
    duration: duration in nanoseconds.
    thread: line of the trace.
    device: number of the device, or -1 if unknown.
    module: name of the program, or '' if unknown.
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
    """End in nanoseconds."""
    return self.start + self.duration


def read(path: pathlib.Path) -> list[Event]:
  """Reads the events of a `.xplane.pb`, or of the newest one below a folder.

  Raises:
    FileNotFoundError: the folder has no trace.
  """
  if path.is_dir():
    found = sorted(path.rglob('*.xplane.pb'), key=lambda p: p.stat().st_mtime)
    if not found:
      raise FileNotFoundError(f'no trace (*.xplane.pb) below {path}')
    path = found[-1]
  return list(events(ProfileData.from_serialized_xspace(path.read_bytes())))


def events(data: ProfileData) -> Iterator[Event]:
  """Yields the events of lines that contain operations of devices.

  Lines are recognized by events with an HLO instruction (`hlo_op`), because
  their names differ between platforms.
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
    op = event.name  # a copy from or to the host, which has no instruction
  return Event(
    name=event.name,
    op=op.split(' = ')[0].lstrip('%'),
    start=event.start_ns,
    duration=event.duration_ns,
    thread=thread,
    device=int(device),
    module=str(stats.get('hlo_module', '')).partition('(')[0],
  )
