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

from craft_jax.serve import bodies, chat, stream
from craft_jax.serve.errors import ApiError
from tests.serve.conftest import Server

_MOST = 1 << 20  # of a body
_BAR = 0.1  # seconds of processor time
_ECHOED = 200  # characters of what was sent


def _filled(before, item, after, between=','):
  """As many items as a body may have."""
  room = _MOST - len(before) - len(after)
  return before + between.join([item] * (room // len(item + between))) + after


def _numbered(before, item, after):
  """The same of items that have each a number."""
  count = (_MOST - len(before) - len(after)) // (len(item) + 6)
  return before + ','.join(item % i for i in range(count)) + after


def _schema(text):
  form = '{"type":"json_schema","json_schema":{"schema":%s}}'
  return '{"response_format":' + form % text + '}'


def _in_schema(before, item, after, fill=_filled):
  inner = fill(before + ' ' * 160, item, after)
  return _schema(inner.replace(' ' * 160, '', 1))


_BIG = 'x' * (_MOST - 300)
_COMPLETIONS = {
  'ids, the last a text': _filled('{"prompt":[', '1', ',"a"]}'),
  'fractions': _filled('{"prompt":[', '1.5', ']}'),
  'negative ids': _filled('{"prompt":[', '-1', ']}'),
  'ids too large': _filled('{"prompt":[', '99999999999', ']}'),
  'ids': _filled('{"prompt":[', '1', ']}'),
  'ids of no symbol': _filled('{"max_tokens":1,"prompt":[', '9999', ']}'),
  'lists of ids': _filled('{"prompt":[', '[1]', ']}'),
  'lists of texts': _filled('{"prompt":[', '["a"]', ']}'),
  'empty lists': _filled('{"prompt":[', '[]', ']}'),
  'objects': _filled('{"prompt":[', '{}', ']}'),
  'nulls': _filled('{"prompt":[', 'null', ']}'),
  'booleans': _filled('{"prompt":[', 'true', ']}'),
  'texts': _filled('{"prompt":[', '""', ']}'),
  'texts, the last an id': _filled('{"prompt":[', '"a"', ',1]}'),
  'long numbers': _filled('{"prompt":[', '9' * 4000, ']}'),
  'long fractions': _filled('{"prompt":[', '.'.join(['9' * 2000] * 2), ']}'),
  'infinities': _filled('{"prompt":[', '1e999', ']}'),
  'a text': f'{{"prompt":"{_BIG}","max_tokens":1}}',
  'escapes': _filled('{"prompt":"', '\\u00e9', '"}', ''),
  'half a pair at the end': _filled('{"prompt":["', 'a', '\\ud800"]}', '","'),
  'half pairs': _filled('{"prompt":"', '\\ud800', '"}', ''),
  'unknown fields': _numbered('{', '"k%d":1', '}'),
  'an unknown field': f'{{"{_BIG}":1}}',
  'one field again and again': _filled('{', '"n":1', '}'),
  'biases': _numbered('{"logit_bias":{', '"%d":1', '}}'),
  'biases that are texts': _numbered('{"logit_bias":{', '"%d":"a"', '}}'),
  'biases of no ids': _numbered('{"logit_bias":{', '"x%d":1', '}}'),
  'a bias of a long name': f'{{"logit_bias":{{"{_BIG}":1}}}}',
  'a bias of a long number': f'{{"logit_bias":{{"{"1" * (_MOST - 99)}":1}}}}',
  'stops': _filled('{"stop":[', '"a"', ']}'),
  'stops that are ids': _filled('{"stop":[', '1', ']}'),
  'a stop': f'{{"stop":"{_BIG}","max_tokens":2}}',
  'a model': f'{{"model":"{_BIG}"}}',
  'a user': f'{{"user":"{_BIG}","max_tokens":1}}',
  'an unknown type': f'{{"response_format":{{"type":"{_BIG}"}}}}',
  'deep lists': '{"prompt":' + '[' * 500_000 + ']' * 500_000 + '}',
  'deep objects': '{"a":' * 140_000 + '1' + '}' * 140_000,
  'no end': _filled('{"prompt":[', '[', ''),
  'spaces': ' ' * (_MOST - 2) + '{}',
  'no JSON': '"' + _BIG,
  'no object': _filled('[', '1', ']'),
  'characters': f'{{"allowed_chars":"{_BIG}","max_tokens":1}}',
  'a pattern': f'{{"regex":"{_BIG}","max_tokens":1}}',
  'a pattern of choices': _filled('{"regex":"', 'ab', '"}', '|'),
  'a pattern of groups': _filled('{"regex":"', '(a', '"}', ''),
  'a class': _filled('{"regex":"[', 'ab', ']"}', '-'),
  'schema: values': _in_schema('{"enum":[', '"a%d"', ']}', _numbered),
  'schema: infinities': _in_schema('{"enum":[', '1e999', ']}'),
  'schema: objects': _in_schema('{"enum":[', '{}', ']}'),
  'schema: properties': _in_schema(
    '{"type":"object","properties":{', '"p%d":{}', '}}', _numbered
  ),
  'schema: keywords': _in_schema('{', '"k%d":1', '}', _numbered),
  'schema: a keyword': _schema(f'{{"{_BIG}":1}}'),
  'schema: a reference among many': _in_schema(
    '{"$ref":"#/$defs/a","$defs":{', '"a%d":{}', '}}', _numbered
  ),
  'schema: types': _in_schema('{"type":[', '"string"', ']}'),
  'schema: a type': _schema(f'{{"type":"{_BIG}"}}'),
  'schema: a format': _schema(f'{{"type":"string","format":"{_BIG}"}}'),
  'schema: required': _in_schema(
    '{"type":"object","required":[', '"r%d"', ']}', _numbered
  ),
}  # fmt: skip
_OTHERS = {
  'messages': ('/v1/chat/completions', _filled('{"messages":[', '{}', ']}')),
  'messages of a role': (
    '/v1/chat/completions',
    _filled('{"messages":[', '{"role":"user","content":"a"}', ']}'),
  ),
  'fields of a message': (
    '/v1/chat/completions', _numbered('{"messages":[{', '"k%d":1', '}]}')
  ),
  'parts': (
    '/v1/chat/completions',
    _filled('{"messages":[{"role":"user","content":[', '{}', ']}]}'),
  ),
  'blank lines': (
    '/v1/chat/completions',
    _filled('{"messages":[{"role":"user","content":"', '\\n ', '"}]}', ''),
  ),
  'a name': (
    '/v1/chat/completions',
    f'{{"messages":[{{"role":"user","content":"","name":"{_BIG}"}}]}}',
  ),
  'negative tokens': ('/detokenize', _filled('{"tokens":[', '-1', ']}')),
  'tokens': ('/detokenize', _filled('{"tokens":[', '97', ']}')),
  'a text to tokenize': ('/tokenize', f'{{"prompt":"{_BIG}"}}'),
  'a text to score': ('/score', f'{{"text":"{_BIG}"}}'),
  'texts to score': ('/score', _filled('{"text":[', '"a"', ']}')),
  'each character': (
    '/score', '{"text":"%s","per_char":true,"stride":64}' % ('a ' * 60_000)
  ),
  'an echo': (
    '/v1/completions',
    '{"prompt":"%s","echo":true,"logprobs":5,"max_tokens":1}' % ('a' * 60_000),
  ),
  'an echo as a stream': (
    '/v1/completions',
    '{"prompt":"%s","echo":true,"logprobs":5,"max_tokens":1,"stream":true}'
    % ('a' * 60_000),
  ),
  'a pattern to validate': ('/validate', f'{{"regex":"{_BIG}"}}'),
  'fields to validate': ('/validate', _numbered('{', '"k%d":1', '}')),
}  # fmt: skip
_CASES = {
  name: ('/v1/completions', text) for name, text in _COMPLETIONS.items()
} | _OTHERS
_KINDS = {
  '/v1/completions': bodies.CompletionBody, '/score': bodies.ScoreBody,
  '/v1/chat/completions': chat.ChatBody, '/validate': bodies.ValidateBody,
  '/tokenize': bodies.TokenizeBody, '/detokenize': bodies.DetokenizeBody,
}  # fmt: skip


def test_there_are_as_many_kinds_as_are_meant():
  assert len(_CASES) >= 70
  assert all(len(text) <= _MOST for _, text in _CASES.values())


@pytest.mark.parametrize('name', _CASES)
def test_no_operation_on_a_body_keeps_the_interpreter(monkeypatch, name):
  """Compiled code, which no thread interrupts, runs for short at a time.

  Between two objects of a body some Python runs, `_names`. The least of three:
  what other programs do to the caches of a core counts as time, too.
  """
  longest = [_longest_operation(monkeypatch, *_CASES[name]) for _ in range(3)]
  assert min(longest) < _BAR


def _longest_operation(monkeypatch, path, text) -> float:
  names, times = bodies._names, []

  def marked(kind):
    times.append(time.thread_time())
    return names(kind)

  gc.disable()  # as `Service.aside` does
  try:
    with monkeypatch.context() as patch:
      patch.setattr(bodies, '_names', marked)
      times.append(time.thread_time())
      with contextlib.suppress(ApiError, ValueError):
        value = bodies.pydantic_core.from_json(text.encode())
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
  longest, dumped = 0, stream._dumped

  def watched(piece):
    nonlocal longest
    longest = max(longest, len(piece) if isinstance(piece, list) else 1)
    return dumped(piece)

  monkeypatch.setattr(stream, '_dumped', watched)
  assert json.loads(stream.encoded(value)) == value
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
    for name, (path, text) in _CASES.items():
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
    b'x' * _MOST,
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
