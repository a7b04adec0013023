"""Attributes the time of a step to operations, from trace and HLO text; pure.

Every instant is counted once. On a thread it belongs to the innermost
operation. Of concurrent operations on a device, computation takes precedence
over collectives, which are thus counted only as far as they are exposed, and
both over control flow; operations of equal precedence share the time equally.
The times of a device therefore add up, and all are means over the devices.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from craft_jax.train.profile import hlo
from craft_jax.train.profile.trace import Event

OTHER, IDLE = 'other', 'idle'
# Kinds of operations, with their names in reports.
KINDS = {
  hlo.PRODUCT: 'matrix products',
  hlo.ELEMENTWISE: 'elementwise, softmax, reductions',
  hlo.MOVE: 'copies, transposes, conversions',
  hlo.COLLECTIVE: 'collectives',
  hlo.SCATTER: 'gather, scatter, sort',
  OTHER: 'other',
  IDLE: 'idle',
}
FORWARD, BACKWARD, RECOMPUTED = 'forward', 'backward', 'recomputed'
OPTIMIZER, DATA, STEP = 'optimizer', 'data', 'step'
# Part of the step by the outermost `jax.named_scope` of an operation. Forward
# and backward pass are told apart by JAX's own names.
_PART_OF_SCOPE = {
  'model': FORWARD,
  'loss': FORWARD,
  'optimizer': OPTIMIZER,
  'data': DATA,
}
_HIDDEN = _PART_OF_SCOPE.keys() - {'loss'}  # shown as the part of a row already
# Components of an `op_name` that come from JAX's transformations.
_WRAPPERS = re.compile(
  r'p?jit(\([^()]*\))?|while|body|cond|branch_\d+_fun|closed_call|checkpoint|'
  r'rematted_computation|shard_map|'
  r'(transpose\()?jvp\(\)\)?'
)
# Event of a CPU collective that waits for the last device to join.
_WAITS = 'Wait: pending_threads'


@dataclasses.dataclass(frozen=True)
class Row:
  """Operations of the same kind, part and source.

  Attributes:
    kind: key of `KINDS`.
    part: part of the step: 'forward', 'backward', 'optimizer', ...
    source: named scopes, such as modules of the model.
    seconds: seconds per step.
    calls: executions per step and device.
    flops: FLOPs of products, per step and device.
    bytes: bytes read and written, per step and device.
    operations: names of the HLO instructions.
  """

  kind: str
  part: str
  source: str
  seconds: float
  calls: float
  flops: float
  bytes: float
  operations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Profile:
  """Time of traced steps by operation.

  Attributes:
    steps: number of traced steps.
    devices: number of devices.
    step_seconds: seconds per step, with the overhead of tracing.
    rows: operations, longest first.
    kinds: seconds per step of each of `KINDS`.
    parts: seconds per step of each part of the step.
    waiting_seconds: seconds per step that collectives wait for other devices,
      as far as the trace shows it (on a CPU).
    lost: share of operations that the recorder lost, estimated from the devices
      with most and fewest of them.
  """

  steps: int
  devices: int
  step_seconds: float
  rows: tuple[Row, ...]
  kinds: dict[str, float]
  parts: dict[str, float]
  waiting_seconds: float
  lost: float

  @property
  def flops(self) -> float:
    """FLOPs of products, per step and device."""
    return sum(row.flops for row in self.rows)

  @property
  def bytes(self) -> float:
    """Bytes read and written, per step and device."""
    return sum(row.bytes for row in self.rows)


def profile(
  events: Sequence[Event], program: hlo.Program, steps: int
) -> Profile:
  """Attributes the time of traced steps to operations.

  Args:
    events: events of the trace.
    program: the traced program.
    steps: number of traced steps.

  Raises:
    ValueError: the trace has no operation of the program.
  """
  events = [_qualified(event, program) for event in events]
  ours = [e for e in events if e.op in program.instructions]
  if not ours:
    raise ValueError(f'the trace has no operation of {program.name}')
  begin = min(event.start for event in ours)
  end = max(event.end for event in ours)
  devices = collections.Counter(event.device for event in ours)
  spent: dict[_Key, float] = collections.defaultdict(float)
  calls: collections.Counter[str] = collections.Counter()
  for device in devices:
    inside = [
      e for e in events if e.device in (device, -1) and begin <= e.start < end
    ]
    for key, time in _exclusive(_segments(inside, program)).items():
      spent[key] += time
    calls.update(e.op for e in inside if e.op)
  scale = 1e-9 / steps / len(devices)
  seconds: dict[str, float] = collections.defaultdict(float)
  for (op, _), time in spent.items():
    seconds[op] += time * scale
  rows = _rows(program, seconds, calls, 1 / steps / len(devices))
  step_seconds = (end - begin) * 1e-9 / steps
  kinds = dict.fromkeys(KINDS, 0.0)
  parts: dict[str, float] = {}
  for row in rows:
    kinds[row.kind] += row.seconds
    parts[row.part] = parts.get(row.part, 0.0) + row.seconds
  kinds[IDLE] = max(step_seconds - sum(kinds.values()), 0.0)
  return Profile(
    steps=steps,
    devices=len(devices),
    step_seconds=step_seconds,
    rows=rows,
    kinds=kinds,
    parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
    waiting_seconds=sum(t for (_, waits), t in spent.items() if waits) * scale,
    lost=1 - min(devices.values()) / max(devices.values()),
  )


# --- time --------------------------------------------------------------------

# Operation, and whether it waits for another device.
_Key = tuple[str, bool]
# Start and end in ns, rank (0 takes precedence), operation.
_Segment = tuple[float, float, int, _Key]


def _qualified(event: Event, program: hlo.Program) -> Event:
  """The event, its operation prefixed by the module if of another program."""
  if not event.op or event.module in ('', program.name):
    return event
  return dataclasses.replace(event, op=f'{event.module}: {event.op}')


def _segments(
  events: Sequence[Event], program: hlo.Program
) -> Iterator[_Segment]:
  """Yields the intervals in which an operation is the innermost on a thread."""
  threads: dict[str, list[Event]] = {}
  for event in events:
    threads.setdefault(event.thread, []).append(event)
  ranks: dict[str, int] = {}
  for of_thread in threads.values():
    of_thread.sort(key=lambda e: (e.start, -e.duration))
    for start, end, key in _innermost(of_thread):
      if key[0] not in ranks:
        ranks[key[0]] = _rank(key[0], program)
      yield start, end, ranks[key[0]], key


def _innermost(events: Sequence[Event]) -> Iterator[tuple[float, float, _Key]]:
  """Yields intervals and innermost operations of a thread's sorted events.

  Events without an operation, such as the executor's, belong to the enclosing
  operation; those outside of any operation are ignored.
  """
  stack: list[tuple[float, _Key]] = []  # end and operation
  now = 0.0

  def passed(until: float) -> Iterator[tuple[float, float, _Key]]:
    nonlocal now
    while stack and now < until:
      stop, key = stack[-1]
      if now < min(stop, until):
        yield now, min(stop, until), key
      now = max(now, min(stop, until))
      if stop <= until:
        stack.pop()
    now = max(now, until)

  for event in events:
    yield from passed(event.start)
    while stack and stack[-1][0] <= now:
      stack.pop()
    if event.op:
      stack.append((event.end, (event.op, False)))
    elif stack:
      op, waits = stack[-1][1]
      waits = waits or event.name.startswith(_WAITS)
      stack.append((event.end, (op, waits)))
  if stack:
    yield from passed(max(end for end, _ in stack))


def _rank(op: str, program: hlo.Program) -> int:
  kind = _kind(op, program)
  return 2 if kind == OTHER else int(kind == hlo.COLLECTIVE)


def _exclusive(segments: Iterator[_Segment]) -> dict[_Key, float]:
  """Nanoseconds of each operation, counting every instant once."""
  bounds = []
  for start, end, rank, key in segments:
    bounds += [(start, 1, rank, key), (end, -1, rank, key)]
  bounds.sort(key=lambda bound: bound[0])
  total: dict[_Key, float] = collections.defaultdict(float)
  active: tuple[dict[_Key, int], ...] = ({}, {}, {})  # by rank
  before = 0.0
  for time, change, rank, key in bounds:
    first = next((keys for keys in active if keys), None)
    if first and time > before:
      share = (time - before) / sum(first.values())
      for running, count in first.items():
        total[running] += share * count
    before = time
    count = active[rank].get(key, 0) + change
    if count:
      active[rank][key] = count
    else:
      del active[rank][key]
  return total


# --- attribution -------------------------------------------------------------


def _kind(op: str, program: hlo.Program) -> str:
  """Key of `KINDS`; copies from or to the host are recognized by name."""
  if op in program.instructions:
    kind = program.kind(op)
    return OTHER if kind == hlo.CONTROL else kind
  return hlo.MOVE if op.lower().startswith(('memcpy', 'memset')) else OTHER


def part_of(program: hlo.Program, op: str) -> str:
  """The part of a training step that an operation belongs to."""
  instruction = program.instructions.get(op)
  if instruction is None:
    return OTHER
  name = program.purpose(instruction).op_name
  if 'rematted_computation' in name:
    return RECOMPUTED
  if 'transpose(' in name:
    return BACKWARD
  if 'jvp(' in name:
    return FORWARD
  scopes = (_PART_OF_SCOPE.get(scope) for scope in _path(name))
  return next(filter(None, scopes), STEP)


def source_of(program: hlo.Program, op: str) -> str:
  """The named scopes of an operation, without those of its part of the step.

  A fusion has the scopes of its last operation; a combined one, such as an
  all-reduce of all gradients, shows how many it combines. A copy added by XLA
  has the scopes of its user. Without scopes, it is the primitive's name.
  """
  instruction = program.instructions.get(op)
  if instruction is None:
    return op
  found = program.purpose(instruction)
  added = 'for ' if found is not instruction else ''
  name = found.op_name
  if '(' in name and (joined := name.partition('/(')[2].count(':')):
    return f'{added}{joined + 1} at once'
  *scopes, primitive = _path(name) or [found.opcode]
  scopes = [scope for scope in scopes if scope not in _HIDDEN] or [primitive]
  return added + '/'.join(scopes)


def _path(op_name: str) -> list[str]:
  """Splits an `op_name` into scopes and the primitive, without wrappers."""
  # Parentheses, as of jit(...), may contain slashes.
  found = re.findall(r'(?:[^/()]|\([^()]*(?:\([^()]*\)[^()]*)*\))+', op_name)
  path: list[str] = []
  for part in found:
    if _WRAPPERS.fullmatch(part):
      continue
    inner = re.fullmatch(r'(?:transpose\()?jvp\((.+?)\)+', part)
    part = inner[1] if inner else part
    if path and part.startswith(f'{path[-1]}.'):  # attention.attention._attend
      part = part.removeprefix(f'{path[-1]}.')
    path.append(part)
  return path


def _rows(
  program: hlo.Program,
  seconds: Mapping[str, float],
  calls: Mapping[str, int],
  scale: float,
) -> tuple[Row, ...]:
  """Groups operations by kind, part and source, longest first."""
  groups: dict[tuple[str, str, str], list[str]] = {}
  for op in sorted(seconds, key=lambda op: -seconds[op]):
    key = _kind(op, program), part_of(program, op), source_of(program, op)
    groups.setdefault(key, []).append(op)
  rows = []
  for (kind, part, source), names in groups.items():
    known = [op for op in names if op in program.instructions]
    rows.append(
      Row(
        kind=kind,
        part=part,
        source=source,
        seconds=sum(seconds[op] for op in names),
        calls=sum(calls[op] for op in names) * scale,
        flops=sum(program.flops(op) * calls[op] for op in known) * scale,
        bytes=sum(program.bytes(op) * calls[op] for op in known) * scale,
        operations=tuple(names),
      )
    )
  return tuple(sorted(rows, key=lambda row: -row.seconds))
