"""Thousands of requests of every kind at random times: each as if alone.

`CRAFT_TRACE_SEED` draws another trace, `CRAFT_SOAK` is how long the soak takes:

  CRAFT_SOAK=600 pytest -s tests/serve/test_trace.py -k memory
"""

import collections
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import signal
import statistics
import threading
import time
from typing import Any, NamedTuple

import pytest

from craft_jax.inference.load import load_model
from tests.serve import traces
from tests.serve.conftest import Server

SEED = int(os.environ.get('CRAFT_TRACE_SEED', '0'))
SOAK = float(os.environ.get('CRAFT_SOAK', '30'))  # seconds
CLIENTS = 24
_COMPLETIONS = re.compile(
  r'craft_requests_total\{path="/v1/completions",status="(\d+)"\} (\S+)'
)
# What the engine remembers: whom its 16 slots had last, and in the last
# dispatch; constraints, which have 512 states in all.
_REMEMBERED = {
  'craft_jax.inference.engine': 32,
  'craft_jax.inference.sampling': 32,
  'craft_jax.data.text': 32,
  'craft_jax.inference.engine.resident_constraints': 512,
  'craft_jax.constrain.automaton': 512,
}
_BOUND = ('regex', 'allowed_chars', 'response_format')


class Inspected(Server):
  """One that tells what it holds."""

  command = ('-m', 'tests.serve.inspected')

  def __init__(self, model_dir, folder):
    self._held = folder / 'held'
    # Only what can never be done is refused.
    super().__init__(
      model_dir, folder / 'log', '--max-wait=1000', '--max-compiling=100',
      '--max-searches=100', HELD=str(self._held),
    )  # fmt: skip

  def inside(self):
    """See `inspected`."""
    self._held.unlink(missing_ok=True)
    self.process.send_signal(signal.SIGUSR1)
    self.until(self._held.exists)
    return json.loads(self._held.read_text())

  def occupied(self):
    """What requests occupy, in its memory and in the system's."""
    found = self.inside()
    folder = pathlib.Path('/proc') / str(self.process.pid)
    return found['held'] | found['objects'] | {
      'files': len(list((folder / 'fd').iterdir())),
      'threads': len(list((folder / 'task').iterdir())),
      'compilations': self.metric('craft_compilations_total'),
    }  # fmt: skip

  def leaks(self, before):
    """What is more than it was, once nothing more goes."""

    def more():
      found = self.occupied()
      return {
        name: (number, before.get(name, 0))
        for name, number in found.items()
        if number > before.get(name, 0) + _remembered(name)
      }

    found = {}

    def is_clean():
      nonlocal found
      found = more()
      return not found

    # What was found then: the next look could see its own request end.
    with contextlib.suppress(AssertionError):
      self.until(is_clean)
    return found

  def memory(self):
    """Bytes that are resident."""
    status = pathlib.Path(f'/proc/{self.process.pid}/status').read_text()
    return int(re.search(r'VmRSS:\s+(\d+) kB', status)[1]) << 10

  def statuses(self):
    """Completions that were answered, by status."""
    _, _, body = self.ask('/metrics')
    found = _COMPLETIONS.findall(body.decode())
    return collections.Counter({int(k): int(float(n)) for k, n in found})


def _remembered(name):
  found = [n for prefix, n in _REMEMBERED.items() if name.startswith(prefix)]
  return max(found, default=0)


class Asked(NamedTuple):
  """A request of the pool.

  Attributes:
    body: as it is sent.
    want: the answer to it alone; None as long as it was not asked.
    refused: status and field, of one that is wrong.
  """

  body: Any
  want: traces.Answered | None
  refused: tuple[int, str | None] | None

  @property
  def may_stream(self):
    """Whether `stream` may be set."""
    body = self.body
    return self.refused is None and not (
      body.get('beam_width') or body.get('best_of', 0) > body['n']
    )


class Step(NamedTuple):
  """What a client does next.

  Attributes:
    number: in the trace.
    wait: seconds before it.
    asked: the request.
    stream: whether its text is to come as it is written.
    leaves: after so many seconds or bytes, whichever is first; None stays.
    half: whether it goes away before all was sent.
  """

  number: int
  wait: float
  asked: Asked
  stream: bool
  leaves: tuple[float, int] | None
  half: bool


def steps(rng, pool):
  """A trace without end."""
  for number in itertools.count():
    asked = rng.choice(pool)
    leaves, half = None, False
    if asked.refused is None and rng.random() < 0.15:
      # At once, while its prompt is read, within the answer, after it.
      leaves = rng.expovariate(50), rng.choice([1, 300, 10**6])
      half = rng.random() < 0.1
    yield Step(
      number,
      rng.choice([0, 0, 0, rng.expovariate(30)]),
      asked,
      asked.may_stream and rng.random() < 0.5,
      leaves,
      half,
    )


class Replay:
  """Clients that play a trace on a server.

  Attributes:
    sent: requests that the server has heard of.
    noted: by status, those whose status is sure.
    left: clients that went away.
    tied: answers that differ by rounding.
  """

  def __init__(self, server, oracle, trace):
    self._server, self._oracle = server, oracle
    self._trace, self._lock = trace, threading.Lock()
    self.noted = collections.Counter()
    self.sent = self.left = self.tied = 0

  def run(self):
    """Plays it to its end.

    Raises:
      AssertionError: an answer is wrong; it says what to ask to see it.
    """
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
      clients = [pool.submit(self._client) for _ in range(CLIENTS)]
      for client in clients:
        client.result()

  def _client(self):
    line = traces.Client(self._server.port)
    try:
      while (step := self._next()) is not None:
        time.sleep(step.wait)
        self._play(line, step)
    finally:
      line.close()

  def _next(self):
    with self._lock:
      return next(self._trace, None)

  def _play(self, line, step):
    body = step.asked.body
    if step.stream:
      body = body | {'stream': True, 'stream_options': {'include_usage': True}}
    if step.leaves is not None:
      line.leave(body, *step.leaves, half=step.half)
      with self._lock:
        self.sent += 1
        self.left += 1
        # No body, which is noted as wrong.
        self.noted[400] += step.half
      return
    while True:
      got = line.ask(body)
      with self._lock:
        self.sent += 1
        self.noted[got.status] += 1
      if got.status != 429:
        break
      # Constraints in use have filled the tables: as a client does, again.
      assert 'no room for a constraint' in got.error['message']
    if got != step.asked.want:
      self._judge(step, got)

  def _judge(self, step, got):
    """Of an answer that is not the one to the request alone."""
    asked, want = step.asked, step.asked.want
    is_bound = any(name in asked.body for name in _BOUND)
    if is_bound and got.status == want.status == 200 and not got.error:
      pairs = zip(got.choices, want.choices, strict=True)
      if not any(traces.difference(*pair) for pair in pairs):
        return
      if self._oracle.allows(asked.body, [one.text for one in got.choices]):
        with self._lock:
          self.tied += 1
        return
    raise AssertionError(
      f'CRAFT_TRACE_SEED={SEED}, request {step.number}, stream={step.stream}:\n'
      f'{json.dumps(asked.body)}\nwas answered\n{got}\nand alone\n{want}'
    )


def alone(server, oracle, pool):
  """The pool with the answer to each request, asked one at a time.

  That of a valid one has to be what the sampler writes.
  """
  line = traces.Client(server.port)
  found = []
  for asked in pool:
    got = line.ask(asked.body)
    found.append(asked._replace(want=got))
    if asked.refused is not None:
      assert (got.status, got.error['param']) == asked.refused, asked.body
      continue
    assert got.status == 200, (asked.body, got)
    want = oracle.choices(asked.body)
    pairs = zip(got.choices, want, strict=True)
    if wrong := next(
      filter(None, itertools.starmap(traces.difference, pairs)), ''
    ):
      texts = [one.text for one in got.choices]
      assert oracle.allows(asked.body, texts), (asked.body, wrong)
    if asked.may_stream:  # the first of its kind may be compiled
      line.ask(asked.body | {'stream': True})
  line.close()
  return found


def draw(rng, number):
  """A pool of so many requests, some of which are wrong."""
  pool = []
  for _ in range(number):
    if rng.random() < 0.15:
      body, refused = traces.malformed(rng)
      pool.append(Asked(body, None, refused))
    else:
      pool.append(Asked(traces.valid(rng), None, None))
  return pool


@pytest.fixture(scope='module')
def oracle(model_dir):
  return traces.Oracle(load_model(model_dir))


@pytest.fixture
def served(model_dir, tmp_path):
  """One that tells what it holds."""
  found = Inspected(model_dir, tmp_path)
  yield found
  assert found.stop() == 0


def check_figures(server, before, replay):
  """Every request was counted, once and as what it was."""
  server.until(lambda: (server.statuses() - before).total() == replay.sent)
  counted = server.statuses() - before
  for status in (400, 404, 429):
    assert counted[status] == replay.noted[status], status
  # The others went away before they were answered, or after.
  assert set(counted) <= {200, 400, 404, 429, 499}
  assert counted[200] >= replay.noted[200]
  assert server.metric('craft_failures_total') == 0


@pytest.mark.slow
def test_each_is_answered_as_if_it_were_alone(served, oracle):
  rng, number = random.Random(SEED), 10_000
  pool = alone(served, oracle, draw(rng, 500))
  before, statuses = served.occupied(), served.statuses()
  trace = itertools.islice(steps(rng, pool), number)
  replay = Replay(served, oracle, trace)
  replay.run()
  assert replay.sent >= number and replay.left > number // 20
  assert replay.tied <= number // 100
  check_figures(served, statuses, replay)
  assert served.leaks(before) == {}
  assert not any(served.inside()['held'].values())


@pytest.mark.slow
def test_memory_is_flat(served, oracle):
  """Nor is anything compiled, left open or left running, however long."""
  rng = random.Random(SEED + 1)
  pool = alone(served, oracle, draw(rng, 200))
  begin, seen = time.monotonic(), []

  def trace():
    for step in steps(rng, pool):
      now = time.monotonic() - begin
      if now > SOAK:
        return
      if now >= len(seen) * SOAK / 80:  # also where the machine is slow
        seen.append((now, step.number, served.memory()))
      yield step

  Replay(served, oracle, itertools.islice(steps(rng, pool), 1000)).run()
  before, blocks = served.occupied(), served.inside()['blocks']
  begin = time.monotonic()
  replay = Replay(served, oracle, trace())
  replay.run()
  assert served.leaks(before) == {}
  for now, number, memory in [*seen[::8], seen[-1]]:
    print(f'{now:.0f} s: {number} requests, {memory / 1e6:.1f} MB')
  print({name: before[name] for name in ('files', 'threads', 'compilations')})
  # Every object of Python is a block: not even one in four requests stays.
  more = served.inside()['blocks'] - blocks
  print(f'{replay.sent} requests, {more} blocks of memory more')
  assert more < replay.sent / 4 + 2000
  # Of what is not Python's only a long soak can tell: the allocator keeps some.
  early, late = (
    [statistics.median(column) for column in zip(*part, strict=True)]
    for part in (seen[20:40], seen[60:])
  )
  assert late[2] - early[2] < (16 << 20) + (late[1] - early[1]) * 512
