"""Who may use the server, from where, and what it tells of them.

Asked over plain sockets: clients mend what is malformed before they send it.
"""

import asyncio
import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from craft_jax import main as entry
from craft_jax.errors import UserError
from craft_jax.inference.load import load_model
from craft_jax.serve import app as app_lib
from craft_jax.serve import logs, middleware
from craft_jax.serve.admission import Limits, Rates
from craft_jax.serve.service import Model, Service

_FIRST, _SECOND = 'first-key-0123456789', 'second-key-987654321'
_SITE = 'https://page.example'
_SECRET = 'Tell nobody of this'


class Server(NamedTuple):
  """A server that runs, and the file of what it says."""

  port: int
  process: subprocess.Popen
  log: pathlib.Path

  def lines(self) -> list[dict]:
    return [json.loads(line) for line in self.log.read_text().splitlines()]


class Answer(NamedTuple):
  status: int
  headers: dict[str, str]
  body: bytes

  @property
  def error(self) -> dict:
    return json.loads(self.body)['error']


@contextlib.contextmanager
def _serving(run, folder, *flags, **env):
  log = folder / 'log'
  with log.open('wb') as file:
    process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'craft_jax.main', 'serve', f'--workdir={run}'),
        *('--port=0', '--name=model', '--slots=2', *flags),
      ],
      stdout=subprocess.PIPE,
      stderr=file,
      env=os.environ | env,
      text=True,
    )
  try:
    line = process.stdout.readline()
    found = re.search(r':(\d+)/$', line)
    assert found, line + log.read_text()
    yield Server(int(found[1]), process, log)
  finally:
    process.terminate()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.fixture(scope='module')
def server(byte_run, tmp_path_factory):
  """With two keys, a site and a limit that no other test reaches."""
  folder = tmp_path_factory.mktemp('secured')
  (folder / 'keys').write_text(f'{_FIRST}\n\n  {_SECOND}  \n')
  with _serving(
    byte_run,
    folder,
    f'--keys-file={folder}/keys',
    f'--allowed-origin={_SITE}',
    '--allowed-host=Models.LAN',
    '--read-deadline=2',
    '--chat',
  ) as found:
    yield found


def _send(server, data: bytes, end: bool = True) -> bytes:
  """All that comes back; `end` says that nothing more will be sent."""
  with socket.create_connection(('127.0.0.1', server.port), 10) as line:
    line.sendall(data)
    if end:
      line.shutdown(socket.SHUT_WR)
    found = b''
    with contextlib.suppress(ConnectionResetError):
      while piece := line.recv(1 << 16):
        found += piece
  return found


def _answers(data: bytes) -> list[Answer]:
  """All of a connection, bodies by their lengths."""
  found = []
  while data:
    head, _, data = data.partition(b'\r\n\r\n')
    first, *lines = head.decode('latin-1').split('\r\n')
    pairs = [line.partition(': ') for line in lines]
    headers = {name.lower(): value for name, _, value in pairs}
    assert len(headers) == len(pairs), 'a header twice'
    length = int(headers.get('content-length', 0))
    if 'transfer-encoding' in headers:  # a stream, the last of a connection
      length = len(data)
    body, data = data[:length], data[length:]
    found.append(Answer(int(first.split(' ')[1]), headers, body))
  return found


def _ask(
  server, path='/v1/models', *lines, method='GET', body=b'', host='localhost'
) -> Answer:
  head = [
    f'{method} {path} HTTP/1.1',
    *([f'Host: {host}'] if host is not None else []),
    'Connection: close',
    *([f'Content-Length: {len(body)}'] if body else []),
    *lines,
  ]
  data = '\r\n'.join([*head, '', '']).encode('latin-1') + body
  # To uvicorn, who will send no more has gone.
  (answer,) = _answers(_send(server, data, end=False))
  return answer


def _key(key=_FIRST):
  return f'Authorization: Bearer {key}'


@pytest.fixture(scope='module')
def routes(byte_run):
  """Every path and method that the application has."""
  trained = load_model(byte_run, 'latest', True)
  service = Service(Model.of(trained), 'm', 1, Limits(), logs.Log())
  found = [
    (route.path.replace('{id}', 'model'), method)
    for route in app_lib.build(service, logs.Log(), chats=True).routes
    for method in route.methods
  ]
  assert len(found) > 12
  return found


# --- keys ---


def test_every_route_asks_for_a_key(server, routes):
  for path, method in routes:
    status = _ask(server, path, method=method).status
    assert status == (200 if path in middleware.OPEN else 401), path
  assert {path for path, _ in routes} >= set(middleware.OPEN)


def test_what_is_no_route_asks_for_a_key(server):
  for path in ('/nothing', '/docs', '/redoc', '/v1', '/.env', '*'):
    for method in ('GET', 'POST', 'HEAD', 'OPTIONS', 'PUT', 'DELETE', 'TRACE'):
      assert _ask(server, path, method=method).status == 401, (path, method)


def test_each_key_is_let_in(server):
  for key in (_FIRST, _SECOND):
    assert _ask(server, '/v1/models', _key(key)).status == 200
  # The scheme is a word of any case.
  assert _ask(
    server, '/v1/models', f'authorization: bEaReR {_FIRST}'
  ).status == (200)


@pytest.mark.parametrize(
  'line',
  [
    'Authorization: Bearer wrong-key-0123456789',
    f'Authorization: Bearer {_FIRST[:-1]}',
    f'Authorization: Bearer {_FIRST}x',
    f'Authorization: Bearer {_FIRST.upper()}',
    f'Authorization: Bearer {_FIRST},{_SECOND}',
    'Authorization: Bearer',
    'Authorization: Bearer \xe9\xff',
    f'Authorization: Basic {_FIRST}',
    f'Authorization: {_FIRST}',
    f'X-Api-Key: {_FIRST}',
    f'Cookie: authorization=Bearer {_FIRST}',
  ],
)
def test_others_are_not(server, line):
  answer = _ask(server, '/v1/models', line)
  assert answer.status == 401
  assert answer.headers['www-authenticate'] == 'Bearer'
  assert answer.error['code'] == 'invalid_api_key'
  assert answer.error['type'] == 'authentication_error'
  assert b'key-0' not in answer.body


def test_two_authorization_headers_are_refused(server):
  lines = [_key(), _key('wrong-key-0123456789')]
  for pair in (lines, lines[::-1], [_key(), _key()]):
    assert _ask(server, '/v1/models', *pair).status == 400


def test_a_key_in_the_address_is_none(server):
  assert _ask(server, f'/v1/models?key={_FIRST}').status == 401


def test_every_key_is_compared_in_constant_time(monkeypatch):
  """All of them, whichever fits, by the one function made for it."""
  compared = []

  def compare(a, b):
    compared.append(a)
    return a == b

  monkeypatch.setattr(middleware.hmac, 'compare_digest', compare)
  one = object.__new__(middleware.Guard)
  one._keys = [b'a', b'b', b'c']
  assert [one._key(key) for key in (b'a', b'b', b'c')] == [0, 1, 2]
  assert compared == [b'a', b'b', b'c'] * 3


@pytest.mark.parametrize(
  'text', ['short', 'x' * 15, 'kéy-0123456789abcdef', 'a\tb-0123456789abcdef']
)
def test_weak_keys_are_refused_at_the_start(tmp_path, monkeypatch, capfd, text):
  (tmp_path / 'keys').write_text(f'{_FIRST}\n{text}\n', encoding='utf-8')
  flags = ['serve', '--workdir=none']
  assert entry.main([*flags, f'--keys-file={tmp_path}/keys']) == 2
  monkeypatch.setenv('CRAFT_API_KEYS', f'{_FIRST},{text}')
  assert entry.main(flags) == 2
  said = capfd.readouterr().err
  assert said.count('16 printable ASCII') == 2
  assert text not in said and _FIRST not in said


def test_no_keys_where_some_were_meant_is_refused(tmp_path, monkeypatch, capfd):
  (tmp_path / 'keys').write_text('\n  \n')
  flags = ['serve', '--workdir=none']
  assert entry.main([*flags, f'--keys-file={tmp_path}/keys']) == 2
  assert entry.main([*flags, f'--keys-file={tmp_path}/other']) == 2
  monkeypatch.setenv('CRAFT_API_KEYS', ' , ')
  assert entry.main(flags) == 2
  assert 'CRAFT_API_KEYS is set but has no keys' in capfd.readouterr().err


@pytest.fixture(scope='module')
def small(byte_run, tmp_path_factory):
  """With keys from the environment, and little that it allows."""
  with _serving(
    byte_run,
    tmp_path_factory.mktemp('small'),
    '--requests-per-minute=5',
    '--max-connections=4',
    '--read-deadline=2',
    CRAFT_API_KEYS=f'{_FIRST}, {_SECOND}',
  ) as found:
    yield found


def test_keys_from_the_environment_and_in_no_list_of_processes(small):
  words = pathlib.Path(f'/proc/{small.process.pid}/cmdline').read_bytes()
  assert b'serve' in words and b'key-' not in words
  # A bucket for each key; a refusal says when to come again.
  for key in (_FIRST, _SECOND):
    asked = [_ask(small, '/v1/models', _key(key)) for _ in range(6)]
    assert [one.status for one in asked] == [200] * 5 + [429]
    assert 1 <= int(asked[-1].headers['retry-after']) <= 12
  assert _ask(small, '/metrics').status == 401
  # Probes are never one too many.
  assert {_ask(small, '/health').status for _ in range(8)} == {200}
  assert 'key-' not in small.log.read_text()


@pytest.mark.parametrize('per_minute', [1, 7, 60, 1000])
def test_a_minute_of_requests(per_minute):
  now = 12345.678
  rates = Rates(per_minute, lambda: now)
  for _ in range(per_minute):
    rates.take('a')
  with pytest.raises(app_lib.ApiError) as caught:
    rates.take('a')
  rates.take('b')
  now += caught.value.retry_after + 1e-6
  rates.take('a')


# --- where it listens, and by what name ---


def test_only_this_machine_by_default(byte_run):
  args = entry.parse('serve', [f'--workdir={byte_run}'])[1]
  assert args.host == '127.0.0.1'
  assert args.allowed_host == args.allowed_origin == []


def test_only_this_machine_is_listened_to(server):
  ours = f'{server.port:04X}'
  listening = [
    line.split()[1]
    for name in ('tcp', 'tcp6')
    for line in pathlib.Path(f'/proc/net/{name}').read_text().splitlines()[1:]
    if line.split()[1].endswith(f':{ours}') and line.split()[3] == '0A'
  ]
  assert listening == [f'0100007F:{ours}']


@pytest.mark.slow
@pytest.mark.parametrize('keyed', [False, True])
def test_to_be_open_to_all_is_told(byte_run, tmp_path, keyed):
  env = {'CRAFT_API_KEYS': _FIRST} if keyed else {}
  with _serving(byte_run, tmp_path, '--host=0.0.0.0', **env) as server:
    events = [line['event'] for line in server.lines()]
  assert ('open to all who reach it' in events) == (not keyed)


@pytest.mark.parametrize(
  'host',
  [
    'localhost',
    'localhost:8000',
    'LOCALHOST',
    'localhost.',
    'localhost.:80',
    '127.0.0.1',
    '127.0.0.1:1',
    '[::1]',
    '[::1]:8000',
    '[0:0:0:0:0:0:0:1]',
    'models.lan',
    'MODELS.lan:443',
  ],
)
def test_names_it_is_called_by(server, host):
  assert _ask(server, '/health', host=host).status == 200


@pytest.mark.parametrize(
  'host',
  [
    'evil.example',
    'evil.example:8000',
    'localhost.evil.example',
    'evil.example@localhost',
    'localhost:evil.example',
    'localhost:80:80',
    'localhost/evil',
    'localhost..',
    '127.0.0.2',
    '127.1',
    '2130706433',
    '0.0.0.0',
    '[::2]',
    '[::1',
    '::1',
    '[::ffff:127.0.0.1]',
    '[]',
    '',
    ':80',
    '*',
    'localhost, evil.example',
  ],
)
def test_other_names_are_refused(server, host):
  """As those of a site whose name leads here: DNS rebinding."""
  for path, lines in (('/health', []), ('/', []), ('/v1/models', [_key()])):
    answer = _ask(server, path, *lines, host=host)
    assert answer.status == 400, host
  with pytest.raises(KeyError):
    answer.headers['access-control-allow-origin']


def test_no_name_or_two(server):
  assert _ask(server, '/health', host=None).status == 400
  assert _ask(server, '/health', 'Host: localhost').status == 400
  old = _answers(_send(server, b'GET /health HTTP/1.0\r\n\r\n'))
  assert [one.status for one in old] == [400]


# --- pages of other sites ---


def test_a_site_that_was_named(server):
  origin = f'Origin: {_SITE}'
  asks = 'Access-Control-Request-Method: POST'
  answer = _ask(server, '/v1/completions', origin, asks, method='OPTIONS')
  assert (answer.status, answer.body) == (204, b'')
  headers = answer.headers
  assert headers['access-control-allow-origin'] == _SITE
  assert headers['access-control-allow-methods'] == 'GET, POST'
  allowed = 'access-control-allow-headers'
  assert headers[allowed] == 'authorization, content-type'
  assert 'access-control-allow-credentials' not in headers
  assert headers['vary'].startswith('origin')
  # Those that OpenAI's clients add; nothing else is sent back.
  for asked in ('authorization,x-stainless-os', 'x, y', 'a\x1bb', 'a b', '*'):
    more = f'Access-Control-Request-Headers: {asked}'
    answer = _ask(server, '/v1/models', origin, asks, more, method='OPTIONS')
    plain = (
      set(asked) <= set('abcdefghijklmnopqrstuvwxyz-, ') and asked != 'a b'
    )
    if answer.status == 204:
      assert (answer.headers[allowed] == asked) == plain
    else:
      assert answer.status == 400 and not plain
  # The answer proper, which still needs the key; an error can be read too.
  for lines, status in (([_key()], 200), ([], 401)):
    answer = _ask(server, '/v1/models', origin, *lines)
    assert answer.status == status
    assert answer.headers['access-control-allow-origin'] == _SITE


@pytest.mark.parametrize(
  'origin',
  [
    'https://evil.example',
    'http://page.example',
    'https://page.example.evil',
    'https://page.example:444',
    'https://PAGE.example',
    'null',
    '*',
    '',
  ],
)
def test_other_sites(server, origin):
  for method, status in (('OPTIONS', 401), ('GET', 200)):
    lines = [_key()] if method == 'GET' else []
    answer = _ask(
      server, '/v1/models', f'Origin: {origin}', *lines, method=method
    )
    assert answer.status == status
    assert not [h for h in answer.headers if h.startswith('access-control')]
    assert answer.headers['cross-origin-resource-policy'] == 'same-origin'


@pytest.mark.parametrize('given', ['*', 'page.example', 'https://a/b', 'null'])
def test_an_origin_that_can_be_none(capfd, given):
  words = ['serve', '--workdir=none', f'--allowed-origin={given}']
  assert entry.main(words) == 2
  assert 'must be an origin' in capfd.readouterr().err


@pytest.mark.parametrize(
  'kind',
  [
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data',
    '',
  ],
)
def test_a_form_of_another_site_does_nothing(server, kind):
  """What a page may send anywhere without asking first."""
  lines = [f'Content-Type: {kind}'] if kind else []
  body = json.dumps({'prompt': 'a', 'max_tokens': 1}).encode()
  answer = _ask(
    server, '/v1/completions', _key(), *lines, method='POST', body=body
  )
  assert answer.status == 400 and 'application/json' in answer.error['message']


# --- what is sent with every answer ---


@pytest.mark.parametrize(
  'data, status',
  [
    (b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n', 200),
    (b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n', 200),
    (b'GET /health HTTP/1.1\r\nHost: evil\r\n\r\n', 400),
    (b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n', 401),
    (
      b'GET /no HTTP/1.1\r\nHost: localhost\r\n'
      + _key().encode()
      + b'\r\n\r\n',
      404,
    ),
    (b'PUT /health HTTP/1.1\r\nHost: localhost\r\n\r\n', 405),
    (
      b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
      + _key().encode()
      + b'\r\nContent-Length: 9999999\r\n\r\n',
      413,
    ),
    (b'nonsense\r\n\r\n', 400),
    (b'GET /health HTTP/1.1\r\n' + b'a: b\r\n' * 9999 + b'\r\n', 400),
  ],
)
def test_headers_of_every_answer(server, data, status):
  answer = _answers(_send(server, data))[0]
  assert answer.status == status
  for name, value in middleware.SAFE_HEADERS.items():
    if name == 'cache-control' and data.startswith(b'GET / '):
      value = 'no-cache'
    assert answer.headers[name] == value
  assert 'server' not in answer.headers
  if status >= 400:
    assert answer.headers['content-type'] == 'application/json'
    assert {*answer.error} == {'message', 'type', 'param', 'code'}


def test_headers_of_a_failure(byte_run, monkeypatch):
  """What nobody foresaw: 500 in the same form, and no text in the log."""
  trained = load_model(byte_run, 'latest', True)
  file = io.StringIO()
  log = logs.Log(file)
  service = Service(Model.of(trained), 'm', 1, Limits(), log)

  def fail():
    raise ValueError(_SECRET)

  monkeypatch.setattr(service.metrics, 'text', fail)
  whole = middleware.Guard(
    app_lib.build(service, log), service, [], ['localhost'], [], log
  )
  scope = {
    'type': 'http', 'method': 'GET', 'path': '/metrics', 'query_string': b'',
    'raw_path': b'/metrics', 'state': {}, 'client': None,
    'headers': [(b'host', b'localhost'), (b'x-request-id', b'mark')],
  }  # fmt: skip
  sent = []

  async def send(message):
    sent.append(message)

  async def receive():
    return {'type': 'http.request', 'body': b''}

  with pytest.raises(ValueError):  # uvicorn closes the connection
    asyncio.run(whole(scope, receive, send))
  start, body = sent
  headers = {k.decode(): v.decode() for k, v in start['headers']}
  assert (
    start['status'] == 500
    and headers.items() >= middleware.SAFE_HEADERS.items()
  )
  assert 'mark' in json.loads(body['body'])['error']['message']
  noted = file.getvalue()
  assert 'ValueError at ' in noted and _SECRET not in noted
  assert _SECRET.encode() not in body['body']


def test_the_policy_of_the_page_is_strict():
  policy = middleware.SAFE_HEADERS['content-security-policy']
  assert policy.startswith("default-src 'none'")
  assert 'unsafe' not in policy and '*' not in policy and 'http' not in policy


# --- requests that are read in two ways ---

_POST = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
_HIDDEN = (
  b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: in\r\n\r\n'
)


@pytest.mark.parametrize(
  'head',
  [
    b'Content-Length: 4\r\nContent-Length: 5\r\n',
    b'Content-Length: 4, 5\r\n',
    b'Content-Length: +4\r\n',
    b'Content-Length: -1\r\n',
    b'Content-Length: 0x4\r\n',
    b'Content-Length: ' + b'9' * 5000 + b'\r\n',
    b'Transfer-Encoding: chunked\r\nContent-Length: 4\r\n',
    b'Content-Length: 4\r\nTransfer-Encoding: chunked\r\n',
    b'Transfer-Encoding: xchunked\r\n',
    b'Transfer-Encoding: chunked, identity\r\n',
    b'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n',
    b'Transfer-Encoding : chunked\r\n',
    b'X: a\r\n folded: b\r\n',
    b' X: a\r\n',
    b'X\x00Y: a\r\n',
    b'X: a\x00b\r\n',
    b'X: a\nTransfer-Encoding: chunked\r\n',
    b'X: a\rTransfer-Encoding: chunked\r\n',
  ],
)
def test_no_request_hides_in_another(server, head):
  """Whoever is answered, what is hidden is asked for a key of its own."""
  keyed = _POST + _key().encode() + b'\r\n' + head + b'\r\n0\r\n\r\n' + _HIDDEN
  assert all(one.status in (400, 401) for one in _answers(_send(server, keyed)))


def test_lengths_that_contradict_end_the_connection(server):
  for head in (
    b'Content-Length: 4\r\nContent-Length: 5\r\n',
    b'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n',
    b'Transfer-Encoding: xchunked\r\n',
  ):
    answers = _answers(_send(server, _POST + head + b'\r\nabcd' + _HIDDEN))
    assert [one.status for one in answers] == [400]
    assert answers[0].headers['connection'] == 'close'


def test_each_of_a_connection_shows_its_own_key(server):
  with_key = (
    b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\n'
    + _key().encode()
    + b'\r\n\r\n'
  )
  without = b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n'
  answers = _answers(_send(server, with_key + without + with_key))
  assert [one.status for one in answers] == [200, 401, 200]


@pytest.mark.parametrize(
  'path',
  [
    '//v1/models',
    '/v1//models',
    '/v1/models/',
    '/health/../v1/models',
    '/health/%2e%2e/v1/models',
    '/%2e%2e/v1/models',
    '/health%2f..%2fv1/models',
    '/health;/../v1/models',
    '/health/v1/models',
    '/page.js/../metrics',
    '/HEALTH',
    '/health%00',
    '/health%20',
    '/./metrics',
    '/v1/models%2f',
    '/v1/%6dodels',
    '/metrics?/health',
    '/metrics#/health',
    'http://localhost/v1/models',
    'http://localhost/health',
    'http://evil.example/',
    'localhost:80',
    '\\health',
  ],
)
def test_no_path_leads_around_the_key(server, path):
  assert _ask(server, path).status in (400, 401)
  # With the key, nothing is sent on to where the path says.
  answer = _ask(server, path, _key())
  assert answer.status in (200, 400, 404) and 'location' not in answer.headers
  if answer.status == 200:
    assert path in ('/v1/%6dodels', '/metrics?/health', '/metrics#/health')


def test_methods(server):
  for method in ('HEAD', 'PUT', 'DELETE', 'TRACE', 'PATCH', 'BREW'):
    answer = _ask(server, '/v1/completions', _key(), method=method)
    assert (answer.status, answer.headers['allow']) == (405, 'POST')
    assert _FIRST.encode() not in answer.body  # TRACE would send it back
  connect = _ask(server, 'evil.example:80', _key(), method='CONNECT')
  assert connect.status in (400, 404)


def test_other_protocols(server):
  upgrade = ('Upgrade: websocket', 'Connection: upgrade',
             'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==',
             'Sec-WebSocket-Version: 13')  # fmt: skip
  head = '\r\n'.join(['GET /v1/models HTTP/1.1', 'Host: localhost', *upgrade])
  found = _answers(_send(server, head.encode() + b'\r\n\r\n'))
  assert [one.status for one in found] == [401]
  for data in (
    b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    b'\x16\x03\x01\x00\xa5',
    b'\n',
  ):
    found = _answers(_send(server, data))
    assert {one.status for one in found} <= {400}


def test_a_very_long_address(server):
  assert _ask(server, '/' + 'a' * 8000).status == 401
  assert _ask(server, '/' + 'a' * 100_000).status == 400
  assert _ask(server, '/health', 'X: ' + 'a' * 100_000).status == 400


@pytest.mark.slow
@pytest.mark.parametrize('requests', [0, 1])
def test_half_a_request_is_cut(server, requests):
  """Also the second of a connection."""
  with socket.create_connection(('127.0.0.1', server.port), 10) as line:
    for _ in range(requests):
      line.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
      found = b''
      while not found.endswith(b'}'):
        found += line.recv(1 << 16)
      assert found.startswith(b'HTTP/1.1 200')
    begin = time.monotonic()
    line.sendall(b'GET /health HTTP/1.1\r\nHos')
    with contextlib.suppress(ConnectionResetError):
      assert not line.recv(1 << 16)
  assert 1.5 < time.monotonic() - begin < 8


@pytest.mark.slow
def test_half_a_body_is_refused(server):
  """However slowly it goes on."""
  head = f'{_key()}\r\nContent-Type: application/json\r\nContent-Length: 99\r\n'
  with socket.create_connection(('127.0.0.1', server.port), 10) as line:
    line.sendall(_POST + head.encode() + b'\r\n')
    begin, found = time.monotonic(), b''
    line.settimeout(0.1)
    while not found and time.monotonic() < begin + 8:
      line.sendall(b' ')
      with contextlib.suppress(TimeoutError):
        found = line.recv(1 << 16)
  assert found.startswith(b'HTTP/1.1 408')
  assert 1.5 < time.monotonic() - begin < 6


@pytest.mark.slow
def test_connections_are_bounded(small):
  """One too many is cut at once; those that say nothing make room in time."""
  where = ('127.0.0.1', small.port)
  with contextlib.ExitStack() as ends:
    for _ in range(4):
      ends.enter_context(socket.create_connection(where, 10))
    time.sleep(0.2)
    begin = time.monotonic()
    more = ends.enter_context(socket.create_connection(where, 10))
    with contextlib.suppress(ConnectionResetError):
      assert not more.recv(1)
    assert time.monotonic() - begin < 1
    time.sleep(max(0.0, begin + 2.5 - time.monotonic()))
    assert _ask(small, '/health').status == 200


# --- the log ---


def _noted(server, mark: str) -> dict:
  end = time.monotonic() + 5
  while time.monotonic() < end:
    for line in server.lines():
      if line.get('id') == mark:
        return line
    time.sleep(0.02)
  raise AssertionError(f'no line of {mark}')


@pytest.mark.parametrize(
  'path, shown',
  [
    ('/a%0a{"event":"forged"}', '/a\n{"event":"forged"}'),
    ('/a%0d%0aforged', '/a\r\nforged'),
    ('/%1b[31mred%1b[0m', '/\x1b[31mred\x1b[0m'),
    ('/%e2%80%a8%c2%85%7f%00', '/\u2028\x85\x7f\0'),
    ('/%ff%fe', '/\ufffd\ufffd'),
    ('/%22,%22status%22:200', '/","status":200'),
    ('/' + 'b' * 5000, '/' + 'b' * 255),
  ],
)
def test_a_path_breaks_and_forges_no_line(server, path, shown):
  answer = _ask(server, path, _key())
  line = _noted(server, answer.headers['x-request-id'])
  assert line['path'] == shown and line['status'] == 404
  text = server.log.read_bytes()
  assert all(byte >= 32 or byte == 10 for byte in text)
  assert all(byte < 127 for byte in text)
  assert 'forged' not in {one['event'] for one in server.lines()}


def test_marks_of_requests(server):
  known = _ask(server, '/health', 'X-Request-Id: mine-1')
  assert known.headers['x-request-id'] == 'mine-1'
  assert _noted(server, 'mine-1')['path'] == '/health'
  for forged in ('a b', 'a"b', 'a\x1b[0m', 'x' * 65, '\xe9', '', '../a'):
    answer = _ask(server, '/health', f'X-Request-Id: {forged}')
    if answer.status == 200:  # else h11 has refused it, and nothing is echoed
      assert re.fullmatch('[0-9a-f]{32}', answer.headers['x-request-id'])
    else:
      assert answer.status == 400 and b'x1b' not in answer.body


def test_neither_texts_nor_keys_are_logged(server):
  """Of requests that go well and of those that do not."""
  for body in (
    {'prompt': _SECRET, 'max_tokens': 3, 'user': _SECRET},
    {'prompt': _SECRET, 'max_tokens': 3, 'stop': [_SECRET]},
    {'prompt': _SECRET, 'regex': _SECRET + '('},
    {'prompt': _SECRET, 'temperature': _SECRET},
    {'prompt': [_SECRET, 1]},
    {_SECRET: 1},
    {'model': _SECRET},
    {'prompt': _SECRET, 'stream': True, 'max_tokens': 2},
  ):
    _ask(
      server, '/v1/completions', _key(), 'Content-Type: application/json',
      method='POST', body=json.dumps(body).encode(),
    )  # fmt: skip
  _ask(server, f'/health?prompt={_SECRET.replace(" ", "+")}&{_FIRST}')
  _noted(server, _ask(server, '/health').headers['x-request-id'])
  text = server.log.read_text()
  assert _SECRET not in text and _SECRET.split()[-1] not in text
  assert 'key-' not in text
  assert text.count('/v1/completions') >= 8


def test_an_error_is_logged_without_its_text():
  try:
    f'{_SECRET}\ud800'.encode()
  except UnicodeEncodeError as e:
    said = logs.described(e)
  assert said.startswith('UnicodeEncodeError at ') and 'nobody' not in said
  assert re.search(r'test_security\.py:\d+$', said)


def test_a_log_that_is_gone():
  """As of `craft serve 2>&1 | head`."""
  read, write = os.pipe()
  os.close(read)
  file = os.fdopen(write, 'w')
  logs.Log(file).note('request')
  with pytest.raises(BrokenPipeError):
    file.close()


def test_answers_can_be_read_by_the_standard_library(server):
  """The sockets above do not fool themselves."""
  line = http.client.HTTPConnection('localhost', server.port, timeout=10)
  line.request(
    'GET', '/v1/models', headers={'Authorization': f'Bearer {_FIRST}'}
  )
  found = json.loads(line.getresponse().read())
  line.close()
  assert [one['id'] for one in found['data']] == ['model']


def test_mistakes_are_one_line():
  with pytest.raises(UserError, match='requests_per_minute'):
    Limits(requests_per_minute=-1)


# --- what is too much ---


def _complete(server, body) -> Answer:
  data = body if isinstance(body, bytes) else json.dumps(body).encode()
  return _ask(
    server, '/v1/completions', _key(), 'Content-Type: application/json',
    method='POST', body=data,
  )  # fmt: skip


@pytest.mark.parametrize(
  'body, status, param',
  [
    (b'"' + b'a' * (1 << 20) + b'"', 413, None),
    (b'[' * 100_000 + b']' * 100_000, 400, None),
    (b'{"logit_bias": ' + b'{"a":' * 50_000 + b'1' + b'}' * 50_001, 400, None),
    (b'{"seed": ' + b'9' * 100_000 + b'}', 400, None),
    ({'prompt': ['a'] * 129}, 400, 'n'),
    ({'prompt': ['a'] * 65, 'n': 2}, 400, 'n'),
    ({'n': 2**31 - 1}, 400, 'n'),
    ({'max_tokens': 4097}, 400, 'max_tokens'),
    ({'prompt': 'a' * 65_537}, 400, 'prompt'),
    ({'prompt': [1] * 65_537}, 400, 'prompt'),
    ({'stop': ['a'] * 5}, 400, 'stop'),
  ],
  ids=range(11),
)
def test_too_much_is_refused(server, body, status, param):
  answer = _complete(server, body)
  assert answer.status == status
  if param:
    assert answer.error['param'] == param


def test_scores_are_bounded(server):
  """Of a context of 16: what stride 1 reads 16 times, stride 16 reads once."""
  for stride, status in ((1, 400), (16, 200)):
    body = {'text': 'a' * 150_000, 'stride': stride}
    answer = _ask(
      server, '/score', _key(), 'Content-Type: application/json',
      method='POST', body=json.dumps(body).encode(),
    )  # fmt: skip
    assert answer.status == status
    assert status == 200 or answer.error['param'] == 'stride'


@pytest.mark.parametrize(
  'body',
  [
    {'regex': '(a|b)*a' + '(a|b)' * 40},
    {'regex': '((a{1,999}){1,999}){1,999}'},
    {'regex': '(' * 20_000 + ')' * 20_000},
    {'regex': 'a' * 200_000},
    {'regex': '(.*a){500}.{500}'},
    {
      'response_format': {
        'type': 'json_schema',
        'json_schema': {'schema': {'$defs': {'a': {'type': 'array', 'items': {
          '$ref': '#/$defs/a'}}}, '$ref': '#/$defs/a'}},
      }
    },
  ],
  ids=['states', 'counts', 'nested', 'long', 'products', 'schema'],
)  # fmt: skip
def test_a_constraint_that_explodes_stalls_nobody(server, body):
  """Others are answered while it is compiled, and it is refused in the end."""
  with socket.create_connection(('127.0.0.1', server.port), 60) as line:
    data = json.dumps(body).encode()
    line.sendall(
      _POST
      + f'{_key()}\r\nContent-Type: application/json\r\nConnection: close\r\n'
      f'Content-Length: {len(data)}\r\n\r\n'.encode()
      + data
    )
    slowest = 0.0
    line.settimeout(0.02)
    found, end = b'', time.monotonic() + 60
    while not found and time.monotonic() < end:
      begin = time.monotonic()
      assert _ask(server, '/health').status == 200
      slowest = max(slowest, time.monotonic() - begin)
      with contextlib.suppress(TimeoutError):
        found = line.recv(1 << 16)
  assert found.startswith(b'HTTP/1.1 400'), found
  assert slowest < 5
