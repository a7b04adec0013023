"""Requests in, pieces of text out, many at once over the same slots."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from craft_jax.constrain import Automaton
from craft_jax.data.text.utf8 import begins_character
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import newer_half
from craft_jax.errors import UserError
from craft_jax.inference.engine.device import Device, PrefixCache, Text
from craft_jax.inference.engine.device import Row as Wrote
from craft_jax.inference.engine.requests import Job, Request, Sample, check
from craft_jax.inference.engine.resident_constraints import Capacity
from craft_jax.inference.engine.scheduler import (
  Full,
  Insert,
  Limits,
  Read,
  Scheduler,
)
from craft_jax.inference.sampling.constraint_tables import CONSTRAINT_MEMORY
from craft_jax.inference.sampling.output import (
  Piece,
  Row,
  constraint_of,
  decoder_after,
  most_likely,
)
from craft_jax.inference.sampling.prefill import CHUNK
from craft_jax.inference.sampling.speculation import FORCED, Drafts
from craft_jax.model.protocol import Model
from craft_jax.runtime import jax_settings
from craft_jax.types import Params

_WHOLE = 3  # characters that one token may complete beside its own
_AHEAD = 4  # tokens per turn that a dispatch has room for, with drafts


class Engine:
  """Continuous batching: requests join and leave between dispatches.

  What a request is given depends on nothing but itself, not on its neighbours,
  its slot or the number of tokens per dispatch.

  Args:
    model: the model.
    params: its parameters.
    vocabulary: its tokens.
    slots: texts written at once.
    steps: turns per dispatch, each of at least a token per text; fewer let
      texts join and leave sooner, more start fewer programs. 0 is 4 on a CPU
      and 16 elsewhere.
    chunk: tokens of a prompt read in one piece, at most.
    reading: tokens of prompts read between two dispatches; more lets new
      requests begin sooner, less keeps those that run from waiting.
    waiting: requests in the queue.
    prefix_bytes: of prompts kept as the model has read them.
    num_top: most likely tokens beside each that a request may ask for.
    drafts: which drafts are read ahead; None is none. Where they are, how a
      text is cut into passes depends on its neighbours, its tokens up to
      near-ties do not.
    constraint_memory: bytes of the tables of constraints on the device. A
      request whose constraint has no room beside those in use waits for it.
    batch: all requests that there will be, which are submitted. Each of their
      samples has a slot and their constraints just the tables they need.
      Windows that are due are read together, which is faster, but then a text
      depends on its neighbours by rounding; and each dispatch is waited for, so
      that none writes more than the texts need. Sizes above that are not of
      a dispatch (`slots`, `chunk` to `prefix_bytes`, `constraint_memory`) say
      nothing then.

  Attributes:
    capacity: of these tables.
    prefixes: the prompts that are kept.
    scheduler: who runs and who waits.
  """

  @jax_settings.pinned()
  def __init__(
    self,
    model: Model,
    params: Params,
    vocabulary: Vocabulary,
    slots: int = 16,
    steps: int = 0,
    chunk: int = CHUNK,
    reading: int = 1024,
    waiting: int = 256,
    prefix_bytes: int = 1 << 28,
    num_top: int = 0,
    drafts: Drafts | None = FORCED,
    constraint_memory: int = CONSTRAINT_MEMORY,
    batch: Sequence[Request] = (),
  ):
    self._vocabulary, self._context = vocabulary, model.context
    self._batch = bool(batch)
    steps = steps or (4 if model.policy.platform.name == 'cpu' else 16)
    columns = _AHEAD * steps if drafts and not batch else steps
    constraints = [
      request.settings.constraint
      for request in batch
      if request.settings.constraint is not None
    ]
    if batch:
      slots, chunk = sum(request.samples for request in batch), self._context
      waiting, reading = len(batch), slots * chunk
      self.capacity = Capacity.of(constraints, vocabulary)
    else:
      self.capacity = Capacity(constraint_memory, vocabulary)
    self._chunk = min(chunk, self._context)
    reading = max(reading, self._chunk)
    limits = Limits(
      slots, steps, columns, self._chunk, reading, waiting,
      max(Limits.waiting_tokens, reading),
    )  # fmt: skip
    self._device = Device(
      model, params, vocabulary, slots, columns, num_top, drafts,
      self.capacity, constraints,
    )  # fmt: skip
    self._num_top = num_top
    self.prefixes = PrefixCache(
      0 if batch else prefix_bytes // self._device.prefix_bytes
    )
    self.scheduler = Scheduler(limits, self._known, self._place)
    self._jobs: dict[int, Job] = {}
    self._running: dict[int, Sample] = {}
    self._number = 0
    # The dispatch that nobody has looked at, and whose tokens it writes.
    self._issued: tuple[Any, dict[int, Sample]] | None = None
    for request in batch:
      self.submit(request)

  @property
  def busy(self) -> bool:
    """Whether `step` has anything to do."""
    return self.scheduler.busy

  def submit(self, request: Request) -> int:
    """Takes a request; its number.

    Raises:
      Full: the queue is; nothing has changed.
      UserError: it can never be done.
    """
    check(request, self._context, self._num_top)
    window = request.prompt[-self._context :].astype(np.int32)
    room = self._context + 1 - len(window)
    automaton, begin, left = self._constraint(request, room)
    self.capacity.check(automaton)
    budget, slides = self._budget(request, len(window), request.max_chars)
    handle, self._number = self._number, self._number + 1
    job = Job(
      request, window, automaton, begin, None, left, None, request.samples
    )
    self.scheduler.submit(
      handle, len(window) - 1, budget, request.samples, slides
    )
    self._jobs[handle] = job
    return handle

  def cancel(self, handle: int) -> bool:
    """Ends a request, of which nothing more is given; False if it has ended.

    What the device is writing is dropped; the next dispatch is without it.
    """
    if not self.scheduler.cancel(handle):
      return False
    for sample in self._jobs[handle].begun:
      sample.row.live = False
    self._forget(handle)
    return True

  def is_known(self, handle: int) -> bool:
    """Whether a request is under way."""
    return handle in self._jobs

  @jax_settings.pinned()
  def step(self) -> list[tuple[int, Piece]]:
    """Issues the next dispatch, then waits for the one before, or for itself.

    Returns:
      What that one added: the request's number, and a `Piece` whose `row` is
      the number of the sample, counted from 0.
    """
    plan = self.scheduler.plan()
    if self._batch:
      if plan.inserts:
        self._device.fill(
          {one.slot: self._text(self._sample(one)) for one in plan.inserts}
        )
    else:
      for read in plan.reads:
        self._read(read)
      for insert in plan.inserts:
        self._insert(insert)
    before, self._issued = self._issued, None
    if plan.steps:
      out = self._device.decode(plan.decode, plan.steps)
      self._issued = out, {slot: self._running[slot] for slot in plan.decode}
    if self._batch:
      before, self._issued = self._issued, None
    if before is None:
      return []
    out, writers = before
    rows = self._device.fetch(out)
    return [
      (sample.handle, self._take(slot, sample, rows[slot]))
      for slot, sample in writers.items()
      if sample.row.live
    ]

  def run(self, requests: Iterable[Request]) -> list[list[Piece]]:
    """Does all of them; of each request a whole `Piece` per sample."""
    if self.busy:
      raise ValueError('other requests are under way, whose pieces would go')
    pieces: dict[int, list[list[Piece]]] = {}
    todo = collections.deque(requests)
    while todo or self.busy:
      while todo:
        try:
          handle = self.submit(todo[0])
        except Full:
          if not self.busy:
            raise
          break
        pieces[handle] = [[] for _ in range(todo.popleft().samples)]
      for handle, piece in self.step():
        pieces[handle][piece.row].append(piece)
    return [[_joined(parts) for parts in of] for of in pieces.values()]

  @jax_settings.pinned()
  def warm(self) -> None:
    """Compiles all there is to compile; only while nothing is under way."""
    assert not self.busy
    self._device.warm(self._chunk)

  # --- what a plan asks for ---

  def _place(self, handle: int) -> bool:
    """Takes room in the tables for a constraint; False if there is none now."""
    job = self._jobs[handle]
    job.first = self._device.store.acquire(job.automaton)
    return job.first is not None

  def _known(self, handle: int) -> int:
    """Tokens of a prompt that a prefix has; it is taken."""
    job = self._jobs[handle]
    done, job.prefix = self.prefixes.find(job.window[:-1], self._chunk)
    return done

  def _read(self, read: Read) -> None:
    job = self._jobs[read.job]
    if read.slot is not None:
      sample = self._running[read.slot]
      ids = np.array(sample.row.window[read.start : read.stop], np.int32)
      prefix = sample.prefix or self._device.empty
      sample.prefix = self._device.read(prefix, ids, self._chunk)
      return
    ids = job.window[read.start : read.stop]
    prefix = job.prefix or self._device.empty
    job.prefix = self._device.read(prefix, ids, self._chunk)
    self.prefixes.keep(job.window[: read.stop], job.prefix)

  def _insert(self, insert: Insert) -> None:
    sample = self._sample(insert)
    if insert.again:
      prefix, sample.prefix = sample.prefix, None
    else:
      prefix = sample.job.prefix
      if insert.last:
        sample.job.prefix = None
    self._device.insert(
      insert.slot, prefix or self._device.empty, self._text(sample)
    )

  def _sample(self, insert: Insert) -> Sample:
    """The sample whose window is due; it begins if it has not."""
    if insert.again:
      return self._running[insert.slot]
    job = self._jobs[insert.job]
    request = job.request
    row = Row(
      job.window.tolist(),
      decoder_after(self._vocabulary, request.prompt, request.settings),
      request.max_chars,
      request.settings.stop,
    )
    sample = Sample(insert.job, job, insert.sample, row, job.begin)
    job.begun.append(sample)
    self._running[insert.slot] = sample
    return sample

  def _text(self, sample: Sample) -> Text:
    """What the device is to know of a text."""
    job, request = sample.job, sample.job.request
    assert job.first is not None, 'it has no place'
    row = {
      'last': sample.row.window[-1],
      'position': len(request.prompt) + sample.written,
      'chars': sample.chars,
      'state': job.first + sample.state,
      'left': job.left - sample.written,
      'seed': request.seed,
      'sample': request.first_sample + sample.number,
    }
    return Text(sample.row.window, row, request.settings)

  # --- what came of it ---

  def _take(self, slot: int, sample: Sample, wrote: Wrote) -> Piece:
    """Adds tokens to a text, and ends it or has its window slide."""
    row, number = sample.row, sample.number
    ids, logprobs = wrote.ids, wrote.logprobs
    ends = (self._vocabulary.bos, self._vocabulary.eos)
    whole = _WHOLE if self._vocabulary.kind == 'byte' else 0
    # None at all where drafts had filled its context before it was told.
    if ids and (row.stop or row.chars_left < len(ids) + whole):
      # It may end here: token by token, what follows its end is not taken,
      # however many tokens were written at once.
      parts = []
      for token, logprob in zip(ids, logprobs, strict=True):
        parts.append(row.take(number, [token], [logprob], ends))
        if not row.live:
          break
      piece = _joined(parts)
    else:
      piece = row.take(number, ids, logprobs, ends)
    sample.ids += piece.ids
    if num_top := sample.job.request.num_top:
      top = most_likely(wrote.top_ids.tolist(), wrote.top.tolist(), num_top)
      piece = dataclasses.replace(piece, top=top[: len(piece.ids)])
    if row.live and len(row.window) > self._context:
      if sample.job.request.slide:
        self._slide(slot, sample)
      else:
        row.live = False
        piece = dataclasses.replace(
          piece, text=piece.text + row.held, finish_reason='length'
        )
    elif row.live and self._batch:
      self.scheduler.renew(
        slot, *self._budget(sample.job.request, len(row.window), row.chars_left)
      )
    if not row.live:
      self.scheduler.finish(sample.handle, number)
      sample.job.unfinished -= 1
      if not sample.job.unfinished:
        self._forget(sample.handle)
    return piece

  def _slide(self, slot: int, sample: Sample) -> None:
    """Has the newer half of the window read; the host knows all of the rest."""
    row = sample.row
    row.window = row.window[-newer_half(self._context) :]
    ids = np.array(sample.ids)
    begins = np.ones(len(ids), bool)
    if self._vocabulary.kind == 'byte':
      begins = begins_character(ids)
    sample.chars += int(begins.sum())
    sample.written += len(ids)
    if sample.job.automaton is not None:
      sample.state = sample.job.automaton.walk(sample.ids, sample.state)
    sample.ids = []
    self.scheduler.slide(
      slot,
      len(row.window) - 1,
      *self._budget(sample.job.request, len(row.window), row.chars_left),
    )

  def _budget(
    self, request: Request, length: int, chars: int
  ) -> tuple[int, bool]:
    """Tokens that a text can need in this window, and if it may need more.

    Args:
      request: what is asked for.
      length: of the window so far.
      chars: still to write.
    """
    room = self._context + 1 - length
    if self._vocabulary.kind == 'char' and chars <= room:
      return chars, False
    if self._batch:
      # A character is at least one token: more may be needed than this, but
      # that is known before the next dispatch.
      return min(room, chars), True
    return room, request.slide

  def _constraint(
    self, request: Request, room: int
  ) -> tuple[Automaton | None, int, int]:
    """The automaton, the state it begins in and the tokens it may write.

    As `generate` has it; a text that ends with the context has less room.
    """
    settings = request.settings
    most = request.max_chars if request.slide else min(request.max_chars, room)
    if settings.constraint is not None:
      least = int(settings.constraint.distance[0])
      if least > most:
        raise UserError(
          f'{most} tokens are too few (max_chars={request.max_chars}, room '
          f'for {room} in the context): the constraint needs at least {least}'
        )
    decoder = decoder_after(self._vocabulary, request.prompt, settings)
    return constraint_of(self._vocabulary, settings, decoder, most)

  def _forget(self, handle: int) -> None:
    job = self._jobs.pop(handle)
    if job.first is not None:
      self._device.store.release(job.automaton)


def _joined(parts: Sequence[Piece]) -> Piece:
  """Pieces of one sample, one after the other, as one."""
  return Piece(
    parts[-1].row,
    ''.join(part.text for part in parts),
    parts[-1].finish_reason,
    [token for part in parts for token in part.ids],
    [logprob for part in parts for logprob in part.logprobs],
    [pairs for part in parts for pairs in part.top],
    parts[-1].end,
  )
