"""Requests whose length can be read in two ways, alone and behind a proxy.

RFC 9112, 6.3: such a request is refused, and nothing that follows it on its
connection is ever answered.
"""

import itertools
import shutil
import socket
import subprocess
import time

import pytest

_HIDDEN = b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n'
# Headers of which any two contradict each other, and those that are wrong.
_PAIRED = (
  b'Content-Length: 5', b'Content-Length: 6', b'Content-Length: 5, 6',
  b'Content-Length: 0', b'Transfer-Encoding: chunked',
  b'Transfer-Encoding: identity', b'Transfer-Encoding: gzip, chunked',
)  # fmt: skip
_WRONG = (
  b'Content-Length: +5', b'Content-Length: -5', b'Content-Length: 0x5',
  b'Content-Length: 5 5', b'Content-Length: 5;', b'Content-Length: ',
  b'Content-Length: 5, 6', b'Content-Length: ' + b'9' * 30,
  b'Content-Length : 5', b'Transfer-Encoding : chunked',
  b'Transfer-Encoding: identity', b'Transfer-Encoding: xchunked',
  b'Transfer-Encoding: chunked, chunked', b'Transfer-Encoding: chunked, gzip',
  b'Transfer-Encoding: "chunked"', b'Transfer-Encoding: chunked\x0b',
  b'Transfer-Encoding:\r\n chunked\r\nContent-Length: 5',
  b'X: a\nTransfer-Encoding: chunked', b'X: a\r\nContent-Length: 5\n',
  b'X: a\rTransfer-Encoding: chunked', b'X: a\r\n b\r\n Content-Length: 5',
  b'\x00Content-Length: 5', b'Content-Length\x00: 5',
)  # fmt: skip


def _head(lines, version=b'1.1'):
  return b'\r\n'.join(
    [
      b'POST /tokenize HTTP/' + version, b'Host: localhost',
      b'Content-Type: application/json', *lines, b'', b'',
    ]
  )  # fmt: skip


def _told(port, data):
  """What comes back until the server closes, and whether it has."""
  with socket.create_connection(('127.0.0.1', port), 10) as line:
    line.sendall(data)
    line.settimeout(5)
    found = b''
    try:
      while piece := line.recv(1 << 16):
        found += piece
    except ConnectionResetError:
      return found, True
    except TimeoutError:
      return found, False
  return found, True


def _statuses(found):
  return [int(part[2:5]) for part in found.split(b'HTTP/1.')[1:]]


@pytest.mark.parametrize('version', [b'1.1', b'1.0'])
def test_what_contradicts_ends_the_connection(server, version):
  pairs = [
    pair
    for pair in itertools.product(_PAIRED, repeat=2)
    if pair[0] != pair[1] or b'Transfer' in pair[0] or b', 6' in pair[0]
  ]
  assert len(pairs) > 40
  for lines in [*pairs, *([one] for one in _WRONG)]:
    data = _head(lines, version) + b'0\r\n\r\n' + _HIDDEN
    found, closed = _told(server.port, data)
    assert _statuses(found) == [400], (lines, found)
    assert closed and b'connection: close' in found.lower(), lines
    assert b'"object":"list"' not in found, lines


def test_chunks_belong_to_http_1_1(server):
  data = _head([b'Transfer-Encoding: chunked'], b'1.0') + b'0\r\n\r\n' + _HIDDEN
  found, closed = _told(server.port, data)
  assert _statuses(found) == [400] and closed


@pytest.mark.parametrize(
  'chunks',
  [
    b'0x5\r\nabcde\r\n0\r\n\r\n', b'+5\r\nabcde\r\n0\r\n\r\n',
    b'-5\r\nabcde\r\n0\r\n\r\n', b'5\nabcde\r\n0\r\n\r\n',
    b'5\r\nabcdeXX0\r\n\r\n', b'\r\n5\r\nabcde\r\n0\r\n\r\n',
    b'5 5\r\nabcde\r\n0\r\n\r\n', b'f' * 30 + b'\r\nabcde\r\n0\r\n\r\n',
  ],
  ids=range(8),
)  # fmt: skip
def test_chunks_that_are_none_end_the_connection(server, chunks):
  data = _head([b'Transfer-Encoding: chunked']) + chunks + _HIDDEN
  found, closed = _told(server.port, data)
  assert _statuses(found) == [400] and closed, found


def test_one_length_is_no_contradiction(server):
  """Also where it is told twice the same: h11 makes it one."""
  body = b'{"prompt":"a"}'
  length = b'Content-Length: %d' % len(body)
  last = _HIDDEN.replace(b'\r\n\r\n', b'\r\nConnection: close\r\n\r\n')
  chunked = b'%x\r\n%s\r\n0\r\n\r\n' % (len(body), body)
  for data in (
    _head([length]) + body,
    _head([length, length]) + body,
    _head([b'Transfer-Encoding: chunked']) + chunked,
    _head([b'transfer-encoding: CHUNKED']) + chunked,
  ):
    found, closed = _told(server.port, data + last)
    assert _statuses(found) == [200, 200] and closed, found


def test_who_is_refused_while_sending_reads_why(server):
  """The rest is taken and discarded: a reset would lose the answer."""
  data = _head([b'Content-Length: 9', b'Transfer-Encoding: chunked'])
  for _ in range(5):
    found, _ = _told(server.port, data + b'x' * (1 << 18))
    assert _statuses(found) == [400], found


def _nginx(folder, port, upstream):
  return (
    f'pid {folder}/pid; error_log {folder}/errors; daemon off;\n'
    'master_process off; events {}\n'
    f'http {{ access_log off; client_body_temp_path {folder}/body;\n'
    f'proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;\n'
    f'uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n'
    f'upstream craft {{ server 127.0.0.1:{upstream}; keepalive 4; }}\n'
    f'server {{ listen 127.0.0.1:{port}; location / {{\n'
    'proxy_pass http://craft; proxy_http_version 1.1;\n'
    'proxy_set_header Connection ""; proxy_set_header Host localhost;\n'
    'proxy_request_buffering off; } } }\n'
  )


def _haproxy(folder, port, upstream):
  return (
    'defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n'
    f'  timeout server 30s\nlisten craft\n  bind 127.0.0.1:{port}\n'
    '  http-reuse always\n  http-request set-header Host localhost\n'
    f'  server craft 127.0.0.1:{upstream}\n'
  )


_PROXIES = {
  'nginx': (_nginx, ['-e', 'stderr', '-c'], 'nginx-light'),
  'haproxy': (_haproxy, ['-db', '-f'], 'haproxy'),
}


@pytest.fixture(params=_PROXIES)
def proxy(server, tmp_path, request):
  """The port of a reverse proxy before the server."""
  configured, flags, package = _PROXIES[request.param]
  path = '/usr/sbin:/usr/bin'  # a user's own may lack the first
  if (program := shutil.which(request.param, path=path)) is None:
    pytest.skip(f'{request.param} is not installed (apt-get install {package})')
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    port = taken.getsockname()[1]
  config, errors = tmp_path / 'config', tmp_path / 'errors'
  config.write_text(configured(tmp_path, port, server.port))
  with errors.open('wb') as file:
    process = subprocess.Popen([program, *flags, str(config)], stderr=file)
  try:
    for _ in range(100):
      try:
        socket.create_connection(('127.0.0.1', port), 1).close()
        break
      except OSError:
        assert process.poll() is None, errors.read_text()
        time.sleep(0.05)
    yield port
  finally:
    process.terminate()
    process.wait(10)


@pytest.mark.slow
def test_behind_a_proxy_nothing_hides(server, proxy):
  """Never more answers than requests, as the proxy counts them."""
  hidden = _HIDDEN.replace(b'/v1/models', b'/v1/models/hidden')
  last = _HIDDEN.replace(b'\r\n\r\n', b'\r\nConnection: close\r\n\r\n')
  pairs = itertools.permutations(_PAIRED, 2)
  for lines in [*pairs, *([one] for one in _WRONG)]:
    data = _head(lines) + b'0\r\n\r\n' + hidden
    found, _ = _told(proxy, data + last)
    statuses = _statuses(found)
    assert len(statuses) <= 3, (lines, found)
    # The connections that the proxy keeps are in step: the next one's answer
    # is its own.
    assert (
      b'"status":"ok"'
      in _told(proxy, last.replace(b'/v1/models', b'/health'))[0]
    )
  found, _ = _told(
    proxy,
    _head([b'Transfer-Encoding: chunked'])
    + b'e\r\n{"prompt":"a"}\r\n0\r\n\r\n'
    + last,
  )
  assert _statuses(found) == [200, 200]
