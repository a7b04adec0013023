"""What the device does next. Plain Python that knows no arrays.

A request has samples, a sample needs a slot. Requests wait in one queue, first
come, first served: whoever is in front takes the next free slot. Its prompt is
read once, in chunks, and put into the slots of all its samples.

Whoever runs this asks for a `plan`, does what it says in its order, and reports
what came of it by `finish` and `slide`. It may ask for the next plan before it
knows the outcome of the last: who has been given all the turns that it can need
is sure to end in them, so its slot is already the next one's.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator

from craft_jax.errors import UserError


class Full(UserError):
  """Nothing more is taken at present; the same request may be sent later."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a scheduler may hand out.

  Attributes:
    slots: samples that run at once.
    steps: turns per dispatch, at most; each writes at least one token.
    columns: tokens per slot and dispatch, at most; 0 is `steps`.
    chunk: tokens read in one piece, at most.
    reading: tokens of prompts read between two dispatches; at least a chunk.
    waiting: requests in the queue.
    waiting_tokens: of the prompts in the queue, together.
  """

  slots: int = 16
  steps: int = 8
  columns: int = 0
  chunk: int = 256
  reading: int = 1024
  waiting: int = 256
  waiting_tokens: int = 1 << 20

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if field.name != 'columns' and getattr(self, field.name) < 1:
        raise UserError(f'{field.name} must be at least 1')
    if self.reading < self.chunk:
      raise UserError(
        f'reading={self.reading} must be at least chunk={self.chunk}'
      )


@dataclasses.dataclass(frozen=True)
class Read:
  """Read tokens `start` to `stop` of a window, the part before being read.

  Attributes:
    job: whose window.
    slot: that the window belongs to; None is the prompt of all samples.
    start: index in the window.
    stop: one past the last.
  """

  job: int
  slot: int | None
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Insert:
  """Put what was read into a slot.

  Attributes:
    job: whose.
    sample: number of the sample.
    slot: where to.
    again: whether the sample ran there before, and its window was read afresh.
    last: whether no other sample needs what was read.
  """

  job: int
  sample: int
  slot: int
  again: bool
  last: bool


@dataclasses.dataclass(frozen=True)
class Plan:
  """One turn of the device: reads, then inserts, then one decode.

  Attributes:
    reads: chunks, in order.
    inserts: whose windows are read by then.
    decode: of each slot that writes, how many tokens at most.
    steps: of the decode; 0 is no decode.
  """

  reads: list[Read]
  inserts: list[Insert]
  decode: dict[int, int]
  steps: int


@dataclasses.dataclass
class _Window:
  """Tokens to read, and how many have been."""

  job: int
  slot: int | None
  length: int
  done: int = 0


@dataclasses.dataclass
class _Job:
  """A request: its prompt, and the slot of each sample that is not finished.

  The slot is None where the sample needs no further turn.
  """

  id: int
  prompt: _Window
  budget: int
  slides: bool
  samples: int
  started: int = 0
  inserted: int = 0
  slots: dict[int, int | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Tenant:
  """A sample in a slot; `window` until what it waits for has been read."""

  job: _Job
  sample: int
  window: _Window | None
  left: int
  slides: bool
  again: bool = False


class Scheduler:
  """Slots and a queue.

  Args:
    limits: what may be handed out.
    known: how many of the first tokens of a job's prompt are read already, as
      a prefix cache knows; asked once, when its reading begins.
    place: takes what a job needs beside slots, before its reading begins; False
      if others hold it. Then it waits at the front of the queue, so that who
      came later does not take it, and is asked again at each plan.
  """

  def __init__(
    self,
    limits: Limits,
    known: Callable[[int], int] = lambda job: 0,
    place: Callable[[int], bool] = lambda job: True,
  ):
    self.limits = limits
    self._known, self._place = known, place
    self._free = list(range(limits.slots))[::-1]
    self._jobs: dict[int, _Job] = {}
    self._waiting: collections.deque[_Job] = collections.deque()
    self._waiting_tokens = 0
    self._tenants: dict[int, _Tenant] = {}
    self._windows: list[_Window] = []

  @property
  def busy(self) -> bool:
    """Whether any sample is not finished."""
    return bool(self._jobs)

  @property
  def num_free(self) -> int:
    """Slots without a sample."""
    return len(self._free)

  @property
  def num_waiting(self) -> int:
    """Requests of which a sample has no slot yet."""
    return len(self._waiting)

  def submit(
    self,
    job: int,
    length: int,
    budget: int,
    samples: int = 1,
    slides: bool = False,
  ) -> None:
    """Puts a request at the end of the queue.

    Args:
      job: its number, unlike any that is not finished.
      length: tokens of its prompt to read.
      budget: tokens that a sample can write at most before it is finished or
        its window slides.
      samples: that share the prompt.
      slides: whether its window may slide when the budget is used up; else the
        sample is finished then.

    Raises:
      Full: the queue is; nothing has changed.
    """
    if job in self._jobs:
      raise ValueError(f'job {job} is not finished')
    if length < 0 or budget < 1 or samples < 1:
      raise ValueError(f'job {job}: {length=}, {budget=}, {samples=}')
    if len(self._waiting) >= self.limits.waiting:
      raise Full(
        f'{len(self._waiting)} requests are waiting, which is the limit; '
        'send it again when some are finished'
      )
    tokens = length + self._waiting_tokens
    if self._waiting and tokens > self.limits.waiting_tokens:
      raise Full(
        f'the prompts that wait would have {tokens} tokens, more than '
        f'{self.limits.waiting_tokens}; send it again when some are read'
      )
    new = _Job(job, _Window(job, None, length), budget, slides, samples)
    self._jobs[job] = new
    self._waiting.append(new)
    self._waiting_tokens += length

  def cancel(self, job: int) -> bool:
    """Forgets a request and frees its slots; whether there was one."""
    gone = self._jobs.pop(job, None)
    if gone is None:
      return False
    if gone.started < gone.samples:
      self._waiting.remove(gone)
      self._waiting_tokens -= gone.prompt.length
    self._windows = [w for w in self._windows if w.job != job]
    for slot in sorted(s for s in gone.slots.values() if s is not None):
      self._vacate(slot)
    return True

  def finish(self, job: int, sample: int) -> None:
    """Takes note that a sample has ended; its slot is free, if it had one."""
    of = self._jobs[job]
    slot = of.slots.pop(sample)
    if slot is not None:
      assert self._tenants[slot].window is None, 'it has not begun'
      self._vacate(slot)
    if not of.slots and of.started == of.samples:
      del self._jobs[job]

  def _vacate(self, slot: int) -> None:
    del self._tenants[slot]
    self._free.append(slot)

  def slide(
    self, slot: int, length: int, budget: int, slides: bool = False
  ) -> None:
    """Has the window of a sample read afresh; it goes on after that.

    Args:
      slot: of the sample.
      length: tokens to read.
      budget: as of `submit`.
      slides: likewise.
    """
    tenant = self._tenants[slot]
    assert tenant.window is None, 'it is being read'
    tenant.window, tenant.again = _Window(tenant.job.id, slot, length), True
    self.renew(slot, budget, slides)
    # Before all prompts: who has begun is not to wait for who has not.
    index = sum(window.slot is not None for window in self._windows)
    self._windows.insert(index, tenant.window)

  def renew(self, slot: int, budget: int, slides: bool) -> None:
    """Gives a sample another budget in place of the rest, as of `submit`."""
    tenant = self._tenants[slot]
    tenant.left, tenant.slides = budget, slides

  def plan(self) -> Plan:
    """What to do now; it counts as done."""
    self._start()
    reads = list(self._chunks())
    inserts = list(self._ready())
    left = {
      slot: tenant.left
      for slot, tenant in self._tenants.items()
      if tenant.window is None and tenant.left
    }
    steps = min(self.limits.steps, max(left.values(), default=0))
    columns = self.limits.columns or steps
    for slot in left:
      tenant = self._tenants[slot]
      tenant.left -= min(steps, tenant.left)
      if not tenant.left and not tenant.slides:
        tenant.job.slots[tenant.sample] = None
        self._vacate(slot)
    decode = {slot: min(columns, count) for slot, count in left.items()}
    return Plan(reads, inserts, decode, steps)

  def _start(self) -> None:
    """Gives free slots to whoever is in front of the queue, and has a place."""
    while self._free and self._waiting:
      job = self._waiting[0]
      if not job.started:
        if not self._place(job.id):
          return
        job.prompt.done = self._known(job.id)
        self._windows.append(job.prompt)
      slot = self._free.pop()
      self._tenants[slot] = _Tenant(
        job, job.started, job.prompt, job.budget, job.slides
      )
      job.slots[job.started] = slot
      job.started += 1
      if job.started == job.samples:
        self._waiting.popleft()
        self._waiting_tokens -= job.prompt.length

  def _chunks(self) -> Iterator[Read]:
    """Chunks in turn, as many as the bound allows.

    A window is cut at multiples of `chunk` alone, whatever else is read: what a
    prompt becomes, to the last bit, depends on nothing but itself.
    """
    chunk, room = self.limits.chunk, self.limits.reading
    for window in self._windows:
      while window.done < window.length:
        start = window.done
        stop = min(start + chunk - start % chunk, window.length)
        if stop - start > room:
          return
        room -= stop - start
        window.done = stop
        yield Read(window.job, window.slot, start, stop)

  def _ready(self) -> Iterator[Insert]:
    """Samples whose window has been read, which run from now on."""
    for slot, tenant in self._tenants.items():
      window, job = tenant.window, tenant.job
      if window is None or window.done < window.length:
        continue
      tenant.window = None
      last = tenant.again
      if not tenant.again:
        job.inserted += 1
        last = job.inserted == job.samples
      yield Insert(job.id, tenant.sample, slot, tenant.again, last)
    self._windows = [w for w in self._windows if w.done < w.length]
