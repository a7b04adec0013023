"""The scheduler with a device whose output is known without one.

The mock device adds up what it reads: a window is its tokens, and what a slot
writes is the sum of its window so far, modulo 10.
"""

import random

import pytest

from craft_jax.errors import UserError
from craft_jax.inference.engine.scheduler import Full, Limits, Scheduler


class Mock:
  """A device of lists, and who runs where."""

  def __init__(self, **limits):
    limits.setdefault('reading', limits.get('chunk', 1024))
    self.limits = Limits(**limits)
    self.scheduler = Scheduler(self.limits, lambda job: self.known.get(job, 0))
    self.known, self.prompts, self.budgets = {}, {}, {}
    self.read, self.slots, self.out = {}, {}, {}
    self.reads_of_turn = []

  def submit(self, job, prompt, budget, samples=1):
    self.scheduler.submit(job, len(prompt), budget, samples)
    self.prompts[job], self.budgets[job] = prompt, budget
    self.read[job] = list(prompt[: self.known.get(job, 0)])

  def turn(self):
    """One plan, done at once; the samples that wrote."""
    plan = self.scheduler.plan()
    self.reads_of_turn.append(sum(r.stop - r.start for r in plan.reads))
    for read in plan.reads:
      assert read.slot is None and len(self.read[read.job]) == read.start
      self.read[read.job] += self.prompts[read.job][read.start : read.stop]
    for insert in plan.inserts:
      assert self.read[insert.job] == self.prompts[insert.job]
      self.slots[insert.slot] = (insert.job, insert.sample)
      self.out[insert.job, insert.sample] = []
    assert plan.steps == max(plan.decode.values(), default=0)
    wrote = []
    for slot, count in plan.decode.items():
      job, _ = who = self.slots[slot]
      wrote.append(who)
      for _ in range(count):
        self.out[who].append(sum(self.prompts[job] + self.out[who]) % 10)
      if len(self.out[who]) == self.budgets[job]:
        self.scheduler.finish(*who)
    return wrote

  def run(self):
    while self.scheduler.busy:
      self.turn()


def expected(prompt, budget):
  out = []
  for _ in range(budget):
    out.append(sum(prompt + out) % 10)
  return out


def test_everything_is_written_once_and_right():
  mock = Mock(slots=3, steps=4, chunk=5)
  prompts = {job: [job, 2, 3] * (job % 5) for job in range(20)}
  for job, prompt in prompts.items():
    mock.submit(job, prompt, 1 + job % 7, samples=1 + job % 4)
  mock.run()
  assert mock.scheduler.num_free == 3 and not mock.scheduler.num_waiting
  for job, prompt in prompts.items():
    for sample in range(1 + job % 4):
      assert mock.out[job, sample] == expected(prompt, 1 + job % 7)
  assert len(mock.out) == sum(1 + job % 4 for job in range(20))


def test_first_come_first_served():
  mock = Mock(slots=2, steps=1, chunk=100)
  for job in range(6):
    mock.submit(job, [1], 2)
  turns = []
  while mock.scheduler.busy:
    turns.append({job for job, _ in mock.turn()})
  assert turns == [{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4, 5}, {4, 5}]


def test_a_slot_is_given_on_before_its_last_tokens_are_known():
  """Two turns ahead of what has been looked at, and no slot stands still."""
  scheduler = Scheduler(Limits(slots=1, steps=4, chunk=4, reading=4))
  for job, slides in enumerate((False, True, False)):
    scheduler.submit(job, 0, 4, slides=slides)
  plans = [scheduler.plan() for _ in range(3)]
  assert [[i.job for i in plan.inserts] for plan in plans] == [[0], [1], []]
  assert [plan.steps for plan in plans] == [4, 4, 0]  # 1 may slide yet
  for job in (0, 1):
    scheduler.finish(job, 0)
  assert [i.job for i in scheduler.plan().inserts] == [2]
  scheduler.finish(2, 0)
  assert not scheduler.busy and scheduler.num_free == 1


def test_a_request_of_many_samples_blocks_nobody_for_good():
  mock = Mock(slots=2, steps=1, chunk=100)
  mock.submit(0, [1, 2], 3, samples=5)  # more than there are slots
  mock.submit(1, [1], 1)
  mock.run()
  assert mock.reads_of_turn[0] == 2 and sum(mock.reads_of_turn) == 3
  assert len(mock.out) == 6


def test_long_prompts_do_not_stall_who_runs():
  mock = Mock(slots=3, steps=2, chunk=8)
  mock.submit(0, [1], 40)
  mock.turn()
  mock.submit(1, [1] * 50, 2)
  mock.submit(2, [2] * 50, 2)
  for _ in range(16):
    assert (0, 0) in mock.turn()
  assert max(mock.reads_of_turn) <= 8
  assert {(1, 0), (2, 0)} < set(mock.out)


def test_short_prompts_share_a_turn():
  mock = Mock(slots=4, steps=1, chunk=8)
  for job in range(4):
    mock.submit(job, [1, 2, 3], 5)
  assert {job for job, _ in mock.turn()} == {0, 1}
  assert {job for job, _ in mock.turn()} == {0, 1, 2, 3}


def test_what_is_known_is_not_read():
  mock = Mock(slots=2, steps=1, chunk=4)
  mock.known = {1: 8}
  mock.submit(1, list(range(10)), 2)
  assert mock.turn() == [(1, 0)]
  assert mock.reads_of_turn == [2]


def test_a_full_queue_refuses_at_once():
  mock = Mock(slots=1, steps=1, waiting=2, waiting_tokens=10)
  mock.submit(0, [1], 5)
  mock.turn()
  mock.submit(1, [1] * 8, 5)
  with pytest.raises(Full, match='would have 11 tokens, more than 10'):
    mock.submit(2, [1] * 3, 5)
  mock.submit(3, [1] * 2, 5)
  with pytest.raises(Full, match='2 requests are waiting, which is the limit'):
    mock.submit(4, [], 5)
  mock.run()
  assert {job for job, _ in mock.out} == {0, 1, 3}


@pytest.mark.parametrize('turns', [0, 1, 3])
def test_cancelling_takes_effect_in_the_next_plan(turns):
  """Waiting, being read, or running: gone, and the slots are others'."""
  mock = Mock(slots=2, steps=1, chunk=4)
  mock.submit(0, [1] * 8, 9, samples=3)
  mock.submit(1, [2], 2)
  for _ in range(turns):
    mock.turn()
  assert mock.scheduler.cancel(0) and not mock.scheduler.cancel(0)
  assert {job for job, _ in mock.turn()} == {1}
  mock.run()
  assert mock.out[1, 0] == [2, 4] and mock.scheduler.num_free == 2


def test_a_window_that_slides_goes_before_new_prompts():
  scheduler = Scheduler(Limits(slots=2, steps=4, chunk=4, reading=4))
  scheduler.submit(0, 2, 4, slides=True)
  assert list(scheduler.plan().decode.values()) == [4]
  slot = next(iter(scheduler._tenants))
  scheduler.submit(1, 8, 4)
  assert not scheduler.plan().decode  # 0 has written all it has room for
  scheduler.slide(slot, 3, 2)
  plan = scheduler.plan()
  assert [(r.job, r.slot, r.stop) for r in plan.reads] == [(0, slot, 3)]
  assert [(i.job, i.again, i.last) for i in plan.inserts] == [(0, True, True)]
  assert plan.decode == {slot: 2} and plan.steps == 2
  assert [r.job for r in scheduler.plan().reads] == [1]


def test_no_slot_is_lost_in_many_random_events():
  rng = random.Random(0)
  limits = Limits(
    slots=5, steps=8, chunk=16, reading=24, waiting=8, waiting_tokens=200
  )
  scheduler = Scheduler(limits, lambda job: 0)
  running, number, refused, cancelled, slid, given_on = {}, 0, 0, 0, 0, 0
  begun: set[tuple[int, int]] = set()
  live: list[int] = []
  for _ in range(100_000):
    event = rng.random()
    if event < 0.25:
      number += 1
      try:
        scheduler.submit(
          number, rng.randrange(40), rng.randint(1, 20), rng.randint(1, 4),
          slides=rng.random() < 0.5,
        )  # fmt: skip
        live.append(number)
      except Full:
        refused += 1
    elif event < 0.3 and live:
      job = rng.choice(live)
      cancelled += scheduler.cancel(job)
      running = {who: slot for who, slot in running.items() if who[0] != job}
    elif event < 0.5 and running:
      job, sample = rng.choice(list(running))
      slot = scheduler._jobs[job].slots[sample]
      given_on += slot is None
      if slot is not None and rng.random() < 0.2:
        scheduler.slide(slot, rng.randrange(20), rng.randint(1, 9), True)
        slid += 1
      else:
        scheduler.finish(job, sample)
      del running[job, sample]
    else:
      plan = scheduler.plan()
      assert sum(r.stop - r.start for r in plan.reads) <= limits.reading
      for insert in plan.inserts:
        who = insert.job, insert.sample
        assert insert.again == (who in begun) and who not in running
        running[who] = insert.slot
        begun.add(who)
      assert plan.decode.keys() <= set(running.values())
    live = [job for job in live if job in scheduler._jobs]
    assert scheduler.num_free + len(scheduler._tenants) == limits.slots
    assert not set(scheduler._free) & set(scheduler._tenants)
  assert min(refused, cancelled, slid, given_on) > 500
  for job in live:
    scheduler.cancel(job)
  assert not scheduler.busy and not scheduler.num_waiting
  assert sorted(scheduler._free) == list(range(5)) and not scheduler._windows


def test_mistakes():
  with pytest.raises(UserError, match='chunk must be at least 1'):
    Limits(chunk=0)
  with pytest.raises(UserError, match='reading=4 must be at least chunk=8'):
    Limits(chunk=8, reading=4)
  scheduler = Scheduler(Limits())
  scheduler.submit(1, 2, 3)
  with pytest.raises(ValueError, match='job 1 is not finished'):
    scheduler.submit(1, 2, 3)
  with pytest.raises(ValueError, match='budget=0'):
    scheduler.submit(2, 2, 0)
