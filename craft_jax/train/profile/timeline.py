"""Where the time of a step went: events of a trace and the program's text.

Pure: a list of events and a text go in, figures come out.

An instant counts once. On a thread the innermost operation has it. Where a
device does several things at once, computation goes before collectives (which
thus count only as far as nothing hides them) and both before what only holds
others; what is left is shared alike. The figures of a device therefore add up
to its time, and all are means over the devices.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from craft_jax.train.profile import hlo
from craft_jax.train.profile.trace import Event

OTHER, IDLE = 'other', 'idle'
# Kinds of operations, as they are called in reports.
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
# The part that an operation is of, by the outermost `jax.named_scope` of these.
# Of what is differentiated JAX itself tells forward from backward.
_PART_OF_SCOPE = {
  'model': FORWARD,
  'loss': FORWARD,
  'optimizer': OPTIMIZER,
  'data': DATA,
}
_HIDDEN = _PART_OF_SCOPE.keys() - {'loss'}  # a row names its part beside them
# Components of an `op_name` that only say how it was traced.
_WRAPPERS = re.compile(
  r'p?jit(\([^()]*\))?|while|body|cond|branch_\d+_fun|closed_call|checkpoint|'
  r'rematted_computation|shard_map|'
  r'(transpose\()?jvp\(\)\)?'
)
# A CPU's collective until the last device is there; what comes after is work.
_WAITS = 'Wait: pending_threads'


@dataclasses.dataclass(frozen=True)
class Row:
  """Operations of one kind that come from one source.

  Attributes:
    kind: key of `KINDS`.
    part: of the step: 'forward', 'backward', 'optimizer', ...
    source: its scopes: modules of the model, and what else the program names.
    seconds: per step.
    calls: executions per step and device.
    flops: of products, per step and device.
    bytes: read and written, per step and device.
    operations: their names in the program and in the trace.
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
  """What a traced stretch of steps consists of.

  Attributes:
    steps: traced.
    devices: that took part.
    step_seconds: of one step, tracing included.
    rows: the operations, most time first.
    kinds: seconds per step of each of `KINDS`.
    parts: seconds per step of each part of a step.
    waiting_seconds: of the collectives, waiting for another device; what the
      trace tells (a CPU's does).
    lost: share of the operations of the device with the most that the one with
      the least does not have: the recorder lost them.
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
    """Of products, per step and device."""
    return sum(row.flops for row in self.rows)

  @property
  def bytes(self) -> float:
    """Read and written, per step and device."""
    return sum(row.bytes for row in self.rows)


def profile(
  events: Sequence[Event], program: hlo.Program, steps: int
) -> Profile:
  """Figures of the traced steps.

  Args:
    events: of the trace.
    program: that ran.
    steps: how many it did.

  Raises:
    ValueError: no operation of the program is among the events.
  """
  events = [_told_apart(event, program) for event in events]
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

# An operation, and whether it waits for another device.
_Key = tuple[str, bool]
# Start and end in ns, rank (0 goes first), operation.
_Segment = tuple[float, float, int, _Key]


def _told_apart(event: Event, program: hlo.Program) -> Event:
  """The event; its operation renamed if it is another program's."""
  if not event.op or event.module in ('', program.name):
    return event
  return dataclasses.replace(event, op=f'{event.module}: {event.op}')


def _segments(
  events: Sequence[Event], program: hlo.Program
) -> Iterator[_Segment]:
  """The stretches in which an operation is its thread's innermost one."""
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
  """Of the events of a thread, in order, which one it is in, and when.

  Events without an operation (the executor's own) belong to the operation
  around them; those outside of any are no work.
  """
  stack: list[tuple[float, _Key]] = []  # when it ends, what it is
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
  """Nanoseconds of each operation, every instant counted once."""
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


# --- places ------------------------------------------------------------------


def _kind(op: str, program: hlo.Program) -> str:
  """Key of `KINDS`; copies to and from the host are known by their names."""
  if op in program.instructions:
    kind = program.kind(op)
    return OTHER if kind == hlo.CONTROL else kind
  return hlo.MOVE if op.lower().startswith(('memcpy', 'memset')) else OTHER


def part_of(program: hlo.Program, op: str) -> str:
  """The part of a step that an operation belongs to."""
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
  """The scopes that an operation comes from, without those of its part.

  A fused operation is where its last part is; one that joins many, such as an
  all-reduce of all gradients, is told by their number. A copy that XLA added is
  where the operation is that it is for. What is under no other scope has the
  name of its primitive.
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
  """`attention`, `_attend`, `dot_general` of an `op_name`."""
  # A slash may be within the brackets of jit(...) and the like.
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
  """Operations of one kind, part and source together, most time first."""
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
