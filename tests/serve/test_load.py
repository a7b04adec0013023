"""Too much, too slow, gone away, broken: nobody else notices."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from craft_jax.serve import completions, sse
from craft_jax.serve import service as service_lib
from craft_jax.serve.admission import Admission, Limits, Work
from craft_jax.serve.errors import ApiError
from craft_jax.serve.schemas import CompletionBody, ScoreBody
from craft_jax.serve.service import Pool
from tests.serve.conftest import TEXT, Server, in_process, written

# So much that it is never finished here: it is the end of it that is tested.
_ENDLESS = {'prompt': '1', 'n': 64, 'max_tokens': 4096, 'ignore_eos': True}
_SMALL = {'prompt': '12 squared', 'max_tokens': 20, 'seed': 7}
_GONE = 'craft_cancellations_total{reason="disconnected"}'
_SLOW = 'craft_cancellations_total{reason="slow_reader"}'


@pytest.fixture(scope='module')
def busy(model_dir, tmp_path_factory):
  """One with close limits, that every test leaves idle."""
  found = Server(
    model_dir, tmp_path_factory.mktemp('busy') / 'log', '--slots=4',
    '--max-wait=2', '--max-connections=24', '--slow-reader=2',
    '--read-deadline=1', '--max-prompt=1000', '--max-body=30000',
    '--max-headers=4000',
  )  # fmt: skip
  yield found
  assert found.stop() == 0


def _request(body, path='/v1/completions'):
  data = json.dumps(body).encode()
  head = (
    f'POST {path} HTTP/1.1\r\nHost: localhost\r\n'
    f'Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n'
  )
  return head.encode() + data


@contextlib.contextmanager
def _asked(server, buffer=0, **fields):
  """A connection on which a request was sent and nothing was read."""
  line = socket.socket()
  line.settimeout(60)
  if buffer:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
  line.connect(('127.0.0.1', server.port))
  line.sendall(_request(fields))
  with line:
    yield line


def _until_end(line):
  """All that comes before the server closes."""
  found = b''
  with contextlib.suppress(ConnectionResetError):
    while piece := line.recv(1 << 16):
      found += piece
  return found


def _holds(server, line):
  """Whether the server still has its end of a connection."""
  ends = [f':{line.getsockname()[1]:04X}', f':{server.port:04X}']
  for row in pathlib.Path('/proc/net/tcp').read_text().splitlines()[1:]:
    _, here, there, state, *_ = row.split()
    if here.endswith(ends[1]) and there.endswith(ends[0]):
      return state == '01'  # ESTABLISHED
  return False


def _is_idle(server):
  return not (
    server.metric('craft_slots_busy') or server.metric('craft_queue_requests')
  )


def _error(answer):
  status, headers, body = answer
  return status, json.loads(body)['error'], headers


# --- admission ---


def test_who_would_wait_too_long_is_refused_at_once():
  admission = Admission(slots=2, max_wait=1.0)
  admission.measured(100, 1.0)
  assert admission.rate == 100
  first = admission.enter(Work(texts=2, chars=100))
  assert admission.wait == 2.0
  with pytest.raises(ApiError) as caught:
    admission.enter(Work(texts=1, chars=1))
  assert caught.value.status == 429
  assert caught.value.retry_after == pytest.approx(1.2)  # until 0.8 s are left
  first.wrote(150)
  second = admission.enter(Work(texts=1, chars=10))
  assert admission.wait == pytest.approx(0.6)
  for claim in (first, first, second):
    claim.release()
  assert (admission.left, admission.texts, admission.wait) == (0, 0, 0)


def test_what_alone_is_past_the_deadline_is_refused():
  admission = Admission(slots=2, max_wait=1.0, deadline=10)
  # The rate is not known.
  admission.enter(Work(texts=128, chars=4096)).release()
  admission.measured(100, 1.0)
  admission.enter(Work(texts=10, chars=100)).release()
  for asked in [
    Work(texts=11, chars=100),
    Work(beams=11, chars=100),
    Work(prompts=16 * 1001),
    Work(prompts=16 * 1001, texts=1, chars=1),
    Work(scored=16 * 1001),
  ]:
    with pytest.raises(ApiError, match='alone would take') as caught:
      admission.enter(asked)
    assert (caught.value.status, caught.value.param) == (400, 'max_tokens')
  assert admission.left == 0


def _busy_with(*works):
  """An admission of 100 tokens a second that has taken some work."""
  admission = Admission(slots=2, max_wait=10.0)
  admission.measured(100, 1.0)
  for work in works:
    admission.enter(work)
  return admission


_SCORE = Work(scored=2000)  # 1.25 s until scores are measured
_BEAMS = Work(prompts=160, beams=4, chars=47)  # 1.98 s


@pytest.mark.parametrize('ahead, asked, seconds', [
  # Nothing is delayed by more than it takes itself, but a search by searches.
  ([_SCORE] * 4, Work(beams=1, chars=4), 4 * 0.04),
  ([_SCORE] * 4, _SCORE, 5.0),
  ([_SCORE] * 2, Work(scored=1 << 16), 2.5),
  ([_BEAMS] * 3, Work(beams=1, chars=4), 5.94),
  ([_BEAMS, _SCORE], Work(scored=160), 0.1 + 0.1),
  ([_BEAMS, _SCORE], Work(scored=160, beams=1, chars=4), 1.98 + 0.14),
  # Texts go after texts, whatever runs beside them; an echo after both.
  ([_SCORE, _BEAMS], Work(texts=9, chars=9), 0.0),
  ([Work(texts=2, chars=200)], Work(texts=1, chars=1), 4.0),
  ([Work(texts=2, chars=200)], _SCORE, 0.0),
  ([Work(texts=2, chars=200), _BEAMS], Work(texts=1, chars=1, scored=160),
   4.0 + 0.1),
  # Prompts that are read into slots are work too, and so are all texts of n.
  ([Work(texts=1, chars=1), Work(prompts=4784, texts=1, chars=100)],
   Work(texts=1, chars=1), 4.0),
])  # fmt: skip
def test_every_kind_of_work_is_waited_for(ahead, asked, seconds):
  """By hand, at 100 tokens a second."""
  admission = _busy_with(*ahead)
  admission._max_wait = seconds * 0.99 / 0.8
  if seconds:
    with pytest.raises(ApiError) as caught:
      admission.enter(asked)
    assert caught.value.status == 429
    assert caught.value.retry_after == pytest.approx(seconds * 0.01)
  admission._max_wait = seconds * 1.01 / 0.8
  admission.enter(asked)


def test_fourteen_scores_are_not_all_taken():
  admission, taken = _busy_with(), []
  for _ in range(14):
    with contextlib.suppress(ApiError):
      taken.append(admission.enter(_SCORE))
  assert len(taken) == 7  # of 1.25 s each, and 8 of the 10 s are for sure
  taken[0].advanced(1000)
  assert taken[0].beside == 62.5
  for claim in taken:
    claim.release()
  admission.enter(_SCORE)


def test_what_runs_beside_the_slots_is_measured():
  admission = _busy_with()
  assert admission.beside(Work(scored=1600)) == 100
  admission.scores.measured(400, 1.0)
  assert admission.beside(Work(scored=1600)) == 400
  admission.beams.measured(50, 1.0)
  assert admission.beside(Work(beams=2, chars=5)) == 20


def test_who_has_no_room_for_a_constraint_waits():
  big = Work(texts=1, chars=100, constraint='a', room=0.75)
  # As much as 1.5 of the two slots, for its 100 characters.
  admission = _busy_with(big)
  assert (admission.left, admission.texts, admission.wait) == (150, 1.5, 0)
  # An equal one shares its states, another waits for them.
  same = admission.enter(big)
  assert same.texts == 1
  same.release()
  other = dataclasses.replace(big, constraint='b', room=0.5)
  admission._max_wait = 1.0
  with pytest.raises(ApiError) as caught:
    admission.enter(other)
  assert caught.value.retry_after == pytest.approx(1.5 - 0.8)
  admission.enter(dataclasses.replace(other, room=0.25))


def test_the_long_takes_turns_with_the_short():
  """Or the first would never end; and none is gone on with for nobody."""
  done = threading.Event()

  def long():
    while not done.is_set():
      time.sleep(0.001)
      yield 1
    return 'long'

  def short():
    yield 2
    return 'short'

  async def all():
    pool, told = Pool('p', 2, 'things'), []
    first = asyncio.create_task(
      pool.run_steps(long(), lambda *turn: told.append(turn))
    )
    await asyncio.sleep(0)
    assert await pool.run_steps(short()) == 'short'
    assert not first.done()
    second = asyncio.create_task(pool.run_steps(long()))
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match='2 things are waiting'):
      await pool.run(lambda: 0)
    second.cancel()
    done.set()
    assert await first == 'long'
    assert sum(tokens for tokens, _ in told) > 0
    assert await pool.run(lambda: 3) == 3
    pool.close()
    assert not pool.busy

  asyncio.run(all())


@pytest.mark.slow
def test_a_search_takes_turns_and_searches_do_not(
  model_dir, tmp_path, monkeypatch
):
  """A score is answered within the largest search; a search comes after it."""
  monkeypatch.setattr(service_lib, '_TURN', 0.0)  # a step in each
  turns, turn = [], Pool._turn

  def watched(pool, steps):
    turns.append(steps)
    return turn(pool, steps)

  monkeypatch.setattr(Pool, '_turn', watched)
  search = CompletionBody(
    prompt='12 squared', max_tokens=54, beam_width=64, ignore_eos=True
  )
  limits = Limits(max_wait=1e6, deadline=0)

  async def all():
    async with in_process(model_dir, tmp_path, limits) as service:
      alone = await written(service, search)
      turns.clear()
      first, second, scored = await asyncio.gather(
        written(service, search), written(service, search),
        service.score(ScoreBody(text='13 squared')),
      )  # fmt: skip
      assert first == second == alone
      assert scored[0]['nats'] > 0

  asyncio.run(all())
  kinds = list(dict.fromkeys(turns))
  order = [kinds.index(steps) for steps in turns]
  assert len(kinds) == 3 and order[:2] == [0, 1]
  # Four tokens of so many beams at a time.
  assert order.count(0) == order.count(2) >= 54 / 4
  last = {kind: i for i, kind in enumerate(order)}
  assert last[1] < last[0] < order.index(2)


def test_the_rate_is_of_sums():
  """Dispatches that only read count too."""
  admission = Admission(1, 1.0)
  for _ in range(200):
    admission.measured(40, 0.01)
    admission.measured(0, 0.03)
  assert admission.rate == pytest.approx(1000, rel=0.1)


@pytest.mark.slow
def test_overload_is_shed_and_what_was_taken_is_finished(busy):
  alone = busy.complete(**_SMALL)['choices']
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    with _asked(busy, **_ENDLESS, stream=True) as line:
      assert line.recv(12) == b'HTTP/1.1 200'
      begin = time.monotonic()
      answers = list(
        pool.map(lambda _: busy.ask('/v1/completions', _SMALL), range(60))
      )
      assert time.monotonic() - begin < 20  # not after what runs
    for answer in answers:
      status, error, headers = _error(answer)
      assert (status, error['code']) == (429, 'server_busy')
      assert int(headers['retry-after']) >= 1
    busy.until(lambda: _is_idle(busy))
    # More than there is room for, all at once: each is refused or whole.
    much = _SMALL | {'max_tokens': 2000, 'ignore_eos': True}
    answers = list(
      pool.map(lambda _: busy.ask('/v1/completions', much), range(60))
    )
  texts = [json.loads(a[2])['choices'] for a in answers if a[0] == 200]
  assert {a[0] for a in answers} == {200, 429}
  assert all(text == texts[0] for text in texts)
  assert len(texts[0][0]['text']) == 2000
  assert busy.complete(**_SMALL)['choices'] == alone
  assert _is_idle(busy)


@pytest.mark.slow
def test_sizes(busy):
  """Of a prompt, a body, its headers; a body that hides its length too."""
  status, error, _ = _error(
    busy.ask('/v1/completions', {'prompt': 'a' * 1001, 'max_tokens': 1})
  )
  assert (status, error['param']) == (400, 'prompt')
  fits = {'prompt': ['a' * 1000] * 2, 'max_tokens': 1}
  assert busy.complete(**fits)['usage']['prompt_tokens'] == 2000
  large = json.dumps({'prompt': 'a' * 30000}).encode()
  assert busy.ask('/v1/completions', large)[0] == 413
  with socket.create_connection(('127.0.0.1', busy.port), 30) as line:
    line.sendall(
      b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
      b'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n'
    )
    for _ in range(4):
      line.sendall(b'2000\r\n' + b' ' * 8192 + b'\r\n')
    assert line.recv(12) == b'HTTP/1.1 413'
  assert busy.ask('/health', headers={'x-long': 'a' * 4000})[0] == 400


@pytest.mark.slow
def test_one_connection_too_many_is_cut(busy):
  with contextlib.ExitStack() as stack:
    # One by one, so that each is there before the next.
    lines = [
      stack.enter_context(
        socket.create_connection(('127.0.0.1', busy.port), 30)
      )
      for _ in range(24)
    ]
    for line in lines:
      line.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
      assert line.recv(12) == b'HTTP/1.1 200'
    with socket.create_connection(('127.0.0.1', busy.port), 30) as more:
      assert _until_end(more) == b''
  busy.until(lambda: busy.ask('/health')[0] == 200)


# --- slow to ask ---


@pytest.mark.slow
@pytest.mark.parametrize(
  'sent, answered',
  [
    (b'', b''),
    (b'GET /health HTTP/1.1\r\nHost: localhost\r\n', b''),
    (_request(_SMALL)[:-5], b'HTTP/1.1 408'),
  ],
)
def test_slow_askers_are_cut(busy, sent, answered):
  """Byte by byte does not help them, and they hold nobody up."""
  begin = time.monotonic()
  lines = [
    socket.create_connection(('127.0.0.1', busy.port), 30) for _ in range(12)
  ]
  for line in lines:
    line.sendall(sent)
  assert busy.complete(**_SMALL)['choices']
  if sent:
    with contextlib.suppress(OSError):
      for byte in b'X-a:':  # never the whole of it
        time.sleep(0.3)
        lines[0].sendall(bytes([byte]))
  for line in lines:
    with line, contextlib.suppress(ConnectionError):
      found = _until_end(line)
      assert found[:12] == answered
      busy.until(lambda line=line: not _holds(busy, line))
  assert time.monotonic() - begin < 15


# --- gone away ---


@pytest.mark.slow
@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize(
  'more', [{}, {'n': 1}, {'prompt': ['1', '2', '3'], 'n': 9}, {'best_of': 70}]
)
def test_slots_are_free_when_the_client_goes_away(busy, stream, more):
  """Within a dispatch; these would take seconds."""
  if stream and 'best_of' in more:
    pytest.skip('not with stream')
  gone = busy.metric(_GONE)
  with _asked(busy, **_ENDLESS | more, stream=stream):
    busy.until(lambda: busy.metric('craft_slots_busy'))
    assert busy.metric(_GONE) == gone
  begin = time.monotonic()
  busy.until(lambda: _is_idle(busy), 5)
  tokens = busy.metric('craft_tokens_total')
  assert time.monotonic() - begin < 5
  assert busy.metric(_GONE) == gone + 1
  time.sleep(0.2)
  assert busy.metric('craft_tokens_total') == tokens, 'it is still written'


def _hold(worker):
  """Has the engine's thread wait between two dispatches; lets it go on."""
  reached, held = threading.Event(), threading.Event()

  def wait():
    reached.set()
    assert held.wait(60)

  worker._commands.put(wait)
  return reached, held.set


def test_a_slot_is_free_at_the_next_dispatch(model_dir, tmp_path):
  """Of a client that has gone, while the engine's thread is at work."""

  async def all():
    async with in_process(model_dir, tmp_path) as service:
      worker, figures = service.running, service.metrics
      gone = asyncio.Event()

      async def receive():
        await gone.wait()
        return {'type': 'http.disconnect'}

      # No more than the slots: how long 64 take depends on the machine.
      body = CompletionBody(**(_ENDLESS | {'n': 2}))
      taken = await completions.take(service, body)
      task = asyncio.create_task(sse.finished(taken, receive, 0))
      while figures.busy._value.get() < 2:
        await asyncio.sleep(0.01)
      reached, go_on = _hold(worker)
      while not reached.is_set():
        await asyncio.sleep(0.01)
      # What was told before is taken note of.
      await asyncio.sleep(0)
      before = figures.dispatches._value.get(), figures.tokens._value.get()
      gone.set()
      with pytest.raises(sse.Gone):
        await task
      assert worker._engine.busy
      go_on()
      while figures.busy._value.get():
        await asyncio.sleep(0.01)
      assert figures.dispatches._value.get() <= before[0] + 1
      assert figures.tokens._value.get() == before[1]
      assert service.admission.texts == service.admission.left == 0

  asyncio.run(all())


# --- slow to take ---


@pytest.mark.slow
@pytest.mark.parametrize('stream', [False, True])
def test_a_slow_reader_is_cut_and_stalls_nobody(busy, stream):
  slow = busy.metric(_SLOW)
  much = {'max_tokens': 4096, 'logprobs': 5, 'n': 3 if stream else 1}
  with _asked(busy, 4096, **_ENDLESS | much, stream=stream) as line:
    busy.until(lambda: busy.metric('craft_slots_busy'))
    if not stream:
      busy.until(lambda: _is_idle(busy))
    else:
      assert busy.complete(**_SMALL)['choices']
    assert _holds(busy, line)
    # Cut, while the client keeps its side open.
    busy.until(lambda: not _holds(busy, line))
    found = _until_end(line)
    assert b'[DONE]' not in found
  busy.until(lambda: _is_idle(busy))
  assert busy.metric(_SLOW) == slow + stream


@pytest.mark.slow
def test_a_steady_reader_is_not_cut(busy):
  """Longer than the bound for taking nothing."""
  much = {'max_tokens': 4096, 'logprobs': 5, 'n': 1}
  with _asked(busy, 1 << 15, **_ENDLESS | much) as line:
    found, begin = b'', time.monotonic()
    while piece := line.recv(1 << 14):
      found += piece
      if b'\r\n\r\n' in found:
        head, _, body = found.partition(b'\r\n\r\n')
        if len(body) == int(re.search(rb'content-length: (\d+)', head)[1]):
          break
        time.sleep(0.06)
    assert time.monotonic() - begin > 2.5
  assert len(json.loads(body)['choices'][0]['logprobs']['tokens']) >= 4096


# --- constraints that explode ---


@pytest.mark.slow
def test_patterns_that_explode_stall_nobody(busy):
  patterns = ['(a|b)*a(a|b){18}', r'(\w+\s?){1,500}', '((a{1,99}){1,99}){1,99}']
  alone = busy.complete(**_SMALL)['choices']
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    futures = [
      pool.submit(
        busy.ask,
        '/v1/completions',
        {'max_tokens': 50, 'regex': patterns[i % 3]},
      )
      for i in range(12)
    ]
    while not all(future.done() for future in futures):
      begin = time.monotonic()
      assert busy.ask('/health')[0] == 200
      assert busy.complete(**_SMALL)['choices'] == alone
      assert time.monotonic() - begin < 5
  for future in futures:
    status, error, _ = _error(future.result())
    assert status == 400
    assert 'too large' in error['message']


# --- deadlines ---


@pytest.mark.slow
def test_deadline(start_server):
  server = start_server('--deadline=1', '--slots=2')
  status, error, _ = _error(server.ask('/v1/completions', _ENDLESS))
  assert (status, error['code']) == (400, 'too_long')
  long = {'text': 'a' * 900_000, 'stride': 1}
  status, error, _ = _error(server.ask('/score', long))
  assert (status, error['param']) == (400, 'text')
  # Two at once, of which each alone would just do.
  room = int(server.metric('craft_full_rate') * 0.9)
  texts = max(1, -(-room // 4096))
  asked = _ENDLESS | {'n': texts, 'max_tokens': room // texts}
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    whole = pool.submit(server.ask, '/v1/completions', asked)
    time.sleep(0.1)
    streams = [
      pool.submit(server.ask, '/v1/completions', asked | {'stream': True})
      for _ in range(3)
    ]
    answers = [whole.result(), *(one.result() for one in streams)]
  late = [a for a in answers if b'"code": "deadline"' in a[2]
          or b'"code":"deadline"' in a[2]]  # fmt: skip
  assert late
  for status, headers, body in late:
    if headers['content-type'].startswith('text/event-stream'):
      assert body.endswith(b'data: [DONE]\n\n')
    else:
      assert status == 503
  server.until(lambda: _is_idle(server))
  assert server.metric('craft_cancellations_total{reason="deadline"}')
  assert server.complete(**_SMALL)['choices'][0]['text']


# --- the end ---


@pytest.mark.slow
def test_what_runs_is_finished_before_the_end(start_server):
  server = start_server('--grace=30', '--slots=4')
  some = _ENDLESS | {'n': 4, 'max_tokens': 3000}
  with (
    _asked(server, **some, stream=True) as streamed,
    _asked(server, **some) as whole,
    socket.create_connection(('127.0.0.1', server.port), 30) as kept,
  ):
    kept.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert kept.recv(12) == b'HTTP/1.1 200'
    server.until(lambda: server.metric('craft_queue_requests'))
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGTERM)  # impatient
    assert b'[DONE]' in _until_end(streamed)
    head, _, body = _until_end(whole).partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 200')
    choices = json.loads(body)['choices']
    assert [len(one['text']) for one in choices] == [3000] * 4
    # No new work, on a connection that was there before either.
    with contextlib.suppress(ConnectionError):
      kept.sendall(_request(_SMALL))
      _until_end(kept)
    with pytest.raises(OSError):
      socket.create_connection(('127.0.0.1', server.port), 5)
  assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_what_is_not_finished_is_told_so(start_server, kind):
  """A score too, which nothing can end."""
  server = start_server(
    '--grace=2', '--slots=4', '--deadline=0', '--max-wait=1000'
  )
  with (
    _asked(server, **_ENDLESS, stream=True) as streamed,
    _asked(server, **_ENDLESS) as whole,
    socket.create_connection(('127.0.0.1', server.port), 60) as scored,
  ):
    scored.sendall(_request({'text': 'a' * 900_000, 'stride': 1}, '/score'))
    server.until(lambda: server.metric('craft_queue_requests') > 1)
    begin = time.monotonic()
    server.process.send_signal(kind)
    end = _until_end(streamed)
    assert b'"code":"closing"' in end and b'data: [DONE]\n\n' in end
    assert _until_end(whole).startswith(b'HTTP/1.1 503')
    assert b'HTTP/1.1 200' not in _until_end(scored)
    assert server.process.wait(30) == 0
    assert time.monotonic() - begin < 5


@pytest.mark.slow
def test_a_second_ctrl_c_waits_for_nothing(start_server):
  server = start_server('--grace=600', '--slots=4', '--max-wait=1000')
  with _asked(server, **_ENDLESS, stream=True) as streamed:
    server.until(lambda: server.metric('craft_slots_busy'))
    server.process.send_signal(signal.SIGINT)
    while True:  # until it takes no more
      with contextlib.suppress(OSError):
        socket.create_connection(('127.0.0.1', server.port), 5).close()
        time.sleep(0.02)
        continue
      break
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert b'"code":"closing"' in _until_end(streamed)


@pytest.mark.slow
def test_an_idle_one_ends_at_once(start_server):
  server = start_server('--slots=1')
  with socket.create_connection(('127.0.0.1', server.port), 30) as line:
    line.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert line.recv(12) == b'HTTP/1.1 200'
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin < 5  # and not after the grace of 20 s
  assert json.loads(
    pathlib.Path(server.log).read_text().splitlines()[-1]
  )['event'] == 'ended'  # fmt: skip


# --- a newer checkpoint ---


def _train(folder, stop):
  """Trains a run of 90 steps, or goes on with it, to a step."""
  (folder / 'text.txt').write_text(TEXT, encoding='utf-8')
  subprocess.run(
    [
      sys.executable, '-m', 'craft_jax.main', 'train', '--config=text',
      f'--workdir={folder / "toy"}', '--quiet',
      f'--config.data.path={folder / "text.txt"}',
      '--config.train.steps=90', f'--config.train.stop_at_step={stop}',
      '--config.train.batch_size=16',
      '--config.model.context=64', '--config.model.width=32',
      '--config.model.depth=2', '--config.model.num_heads=2',
      '--config.model.precision=float32', '--config.optim.warmup_steps=5',
      '--config.log.sample_chars=0', '--config.mesh.cpu_devices=1',
    ],
    check=True, stdout=subprocess.DEVNULL,
  )  # fmt: skip


@pytest.mark.slow
def test_a_newer_checkpoint_is_taken_and_nothing_dropped(tmp_path):
  _train(tmp_path, 60)
  folder = tmp_path / 'toy' / 'checkpoints'
  checkpoint = 'craft_checkpoint_step'
  server = Server(
    tmp_path / 'toy', tmp_path / 'log', '--reload=0.2', '--max-wait=1000'
  )
  try:
    assert server.metric(checkpoint) == 60
    old = server.complete(**_SMALL)['choices']
    # A damaged one comes first.
    shutil.copytree(folder / '60', folder / 'next')
    for file in (folder / 'next').rglob('*'):
      if file.is_file():
        file.write_bytes(file.read_bytes()[:-7] + b'damaged')
    (folder / 'next').rename(folder / '70')
    log = pathlib.Path(server.log)
    server.until(lambda: 'passed over' in log.read_text())
    assert server.metric(checkpoint) == 60
    assert server.complete(**_SMALL)['choices'] == old
    shutil.rmtree(folder / '70')

    stop = False
    statuses = []

    def ask():
      while not stop:
        statuses.append(server.ask('/v1/completions', _SMALL)[0])

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      for _ in range(3):
        pool.submit(ask)
      try:
        with _asked(server, **_ENDLESS | {'n': 16}, stream=True) as line:
          _train(tmp_path, 90)
          server.until(lambda: server.metric(checkpoint) == 90, 60)
          new = server.complete(**_SMALL)['choices']
          assert b'[DONE]' in _until_done(line)
      finally:
        stop = True
    assert set(statuses) == {200}
    assert new != old
    assert server.metric('craft_reloads_total') == 1
    server.until(lambda: _is_idle(server))
    assert server.metric('craft_slots') == 16
  finally:
    assert server.stop() == 0
  events = [json.loads(line)['event'] for line in log.read_text().splitlines()]
  assert events.count('checkpoint passed over') == 1
  assert events.count('reloaded') == 1


def _until_done(line):
  found = b''
  while b'[DONE]' not in found and (piece := line.recv(1 << 16)):
    found = found[-10:] + piece
  return found


# --- a device that fails ---


class _Fails:
  """A device whose next decode fails."""

  def __init__(self, device):
    self._device, self.failed = device, False

  def __getattr__(self, name):
    return getattr(self._device, name)

  def decode(self, *args):
    if not self.failed:
      self.failed = True
      raise RuntimeError('out of memory')
    return self._device.decode(*args)


def test_a_failing_device_fails_its_requests_and_no_others(model_dir, tmp_path):
  async def all():
    async with in_process(model_dir, tmp_path) as service:
      worker = service.running
      alone = await written(service, CompletionBody(**_SMALL))
      worker._engine._device = _Fails(worker._engine._device)
      # All three are there before the engine's thread goes on.
      _, go_on = _hold(worker)
      asked = asyncio.gather(
        *(written(service, CompletionBody(**_SMALL, n=n)) for n in (1, 2, 3)),
        return_exceptions=True,
      )
      while worker._commands.qsize() < 3:
        await asyncio.sleep(0.01)
      go_on()
      found = await asked
      assert [error.status for error in found] == [500] * 3
      assert service.metrics.failures._value.get() == 1
      assert await written(service, CompletionBody(**_SMALL)) == alone
      # Another cannot be made at first: one more request fails, not the rest.
      make, times = worker._make, iter(range(2))

      def fails():
        if next(times, None) is not None:
          raise RuntimeError('out of memory')
        return make()

      worker._make = fails
      worker._engine._device = _Fails(worker._engine._device)
      for _ in range(2):
        with pytest.raises(ApiError, match='the model failed'):
          await written(service, CompletionBody(**_SMALL))
      assert await written(service, CompletionBody(**_SMALL)) == alone
      assert service.admission.texts == service.admission.left == 0
      assert not worker._jobs

  asyncio.run(all())
  assert 'RuntimeError' in (tmp_path / 'log').read_text()
