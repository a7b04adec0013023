"""What a request costs others: nothing that grows with what is sent.

Counted in processor time of the event loop's thread, by `timed`; and of single
operations, as each keeps the interpreter from all threads.
"""

import contextlib
import gc
import itertools
import json
import pathlib
import socket
import threading
import time

import pytest

from craft_jax.serve import chat, schemas, sse
from craft_jax.serve.errors import ApiError
from tests.serve.conftest import Server
from tests.serve.costly import CASES, MOST

_BAR = 0.1  # seconds of processor time
_ECHOED = 200  # characters of what was sent


_KINDS = {
  '/v1/completions': schemas.CompletionBody, '/score': schemas.ScoreBody,
  '/v1/chat/completions': chat.ChatBody, '/validate': schemas.ValidateBody,
  '/tokenize': schemas.TokenizeBody, '/detokenize': schemas.DetokenizeBody,
}  # fmt: skip


def test_there_are_as_many_kinds_as_are_meant():
  assert len(CASES) >= 70
  assert all(len(text) <= MOST for _, text in CASES.values())


@pytest.mark.parametrize('name', CASES)
def test_no_operation_on_a_body_keeps_the_interpreter(monkeypatch, name):
  """Compiled code, which no thread interrupts, runs for short at a time.

  Between two objects of a body some Python runs, `_names`. The least of three:
  what other programs do to the caches of a core counts as time, too.
  """
  longest = [_longest_operation(monkeypatch, *CASES[name]) for _ in range(3)]
  assert min(longest) < _BAR


def _longest_operation(monkeypatch, path, text) -> float:
  names, times = schemas._names, []

  def marked(kind):
    times.append(time.thread_time())
    return names(kind)

  gc.disable()  # as `Service.aside` does
  try:
    with monkeypatch.context() as patch:
      patch.setattr(schemas, '_names', marked)
      times.append(time.thread_time())
      with contextlib.suppress(ApiError, ValueError):
        value = schemas.pydantic_core.from_json(text.encode())
        times.append(time.thread_time())
        _KINDS[path].model_validate(value)
      times.append(time.thread_time())
  finally:
    gc.enable()
  return max(b - a for a, b in itertools.pairwise(times))


def test_an_answer_is_encoded_in_pieces(monkeypatch):
  value = {
    'a': list(range(10_000)), 'b': [{'c': [None, 'é\ud800']}] * 3, 'd': {},
    'e': [], 'f': [[], {}, [1.5]], 'g': {'h': {'i': True}, 'j': 'k'},
  }  # fmt: skip
  longest, dumped = 0, sse._dumped

  def watched(piece):
    nonlocal longest
    longest = max(longest, len(piece) if isinstance(piece, list) else 1)
    return dumped(piece)

  monkeypatch.setattr(sse, '_dumped', watched)
  assert json.loads(sse.encoded(value)) == value
  assert 1000 < longest < 5000


class Timed(Server):
  """Says which callbacks of its event loop took long."""

  command = ('-m', 'tests.serve.timed')

  def __init__(self, model_dir, log, times):
    self.times = pathlib.Path(times)
    self.times.touch()
    super().__init__(
      model_dir, log, '--chat', '--slots=4', TIMED=str(self.times)
    )

  def long(self):
    """Seconds and callbacks so far."""
    return [json.loads(line) for line in self.times.read_text().splitlines()]


@pytest.fixture(scope='module')
def timed(model_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp('timed')
  server = Timed(model_dir, folder / 'log', folder / 'times')
  for path in _KINDS:  # what is imported and compiled once
    server.ask(path, {})
  yield server
  assert server.stop() == 0


def _raw(server, data, wait=0.2):
  """Sends bytes as they are, and reads for a while."""
  with socket.create_connection(('127.0.0.1', server.port), 30) as line:
    for i in range(0, len(data), 1 << 18):
      try:
        line.sendall(data[i : i + (1 << 18)])
      except OSError:
        break
    line.settimeout(wait)
    found = b''
    with contextlib.suppress(OSError):
      while piece := line.recv(1 << 16):
        found += piece
  return found


@pytest.mark.slow
def test_nothing_that_is_sent_keeps_the_event_loop(timed):
  """While a text is streamed, every largest body; answers say little of it."""
  before = len(timed.long())
  ended = threading.Event()
  streams = []

  def write():
    while not ended.is_set():
      streams.append(len(timed.stream(prompt='1 ', max_tokens=200)))

  writer = threading.Thread(target=write)
  writer.start()
  try:
    for name, (path, text) in CASES.items():
      noted = len(timed.long())
      status, _, body = timed.ask(path, text.encode())
      assert status in (200, 400, 404, 429), (name, status, body[:300])
      if status != 200:
        error = json.loads(body)['error']
        assert len(error['message']) <= 240, (name, error)
        assert len(body) < 400 + _ECHOED, (name, body)
        for sent in ('x', '1', 'a', 'k'):
          assert sent * _ECHOED not in error['message'], name
      elif path == '/validate':
        assert len(body) < 400, name
      took = [spent for spent, _ in timed.long()[noted:]]
      assert max(took, default=0) < _BAR, (name, timed.long()[noted:])
  finally:
    ended.set()
    writer.join()
  assert streams and min(streams) > 1
  assert max([s for s, _ in timed.long()[before:]], default=0) < _BAR


@pytest.mark.slow
@pytest.mark.parametrize(
  'data',
  [
    b'GET /health HTTP/1.1\r\nHost: localhost\r\n' + b'a:b\r\n' * 200_000,
    b'GET / HTTP/1.1\r\nHost: localhost\r\n' + b'a:b\r\n' * 3000 + b'\r\n',
    b'GET /v1/models?' + b'a&' * 8000 + b' HTTP/1.1\r\nHost: localhost\r\n\r\n',
    b'GET /' + b'a/' * 8000 + b' HTTP/1.1\r\nHost: localhost\r\n\r\n',
    b'GET /' + b'%41' * 5000 + b' HTTP/1.1\r\nHost: localhost\r\n\r\n',
    b'GET /v1/models/' + b'x' * 16000 + b' HTTP/1.1\r\nHost: localhost\r\n\r\n',
    b'GET /health HTTP/1.1\r\nHost: ' + b'x' * 16000 + b'\r\n\r\n',
    b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked'
    b'\r\nContent-Type: application/json\r\n\r\n' + b'1\r\n \r\n' * 200_000,
    b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n' * 5000,
    b'\r\n' * 500_000,
    b'x' * MOST,
  ],
  ids=range(11),
)  # fmt: skip
def test_nor_does_any_framing(timed, data):
  noted = len(timed.long())
  found = _raw(timed, data)
  for sent in (b'x', b'a/', b'AA'):
    assert sent * _ECHOED not in found
  long = timed.long()[noted:]
  assert max([spent for spent, _ in long], default=0) < _BAR, long
  assert timed.ask('/health')[0] == 200
