"""A checkpoint is data: nothing in it is unpickled or run when it is opened."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import jax
import pytest

from craft_jax.config import load as config_lib
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.runs import checkpoint
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.state import init_state

HERE = platform_of(jax.devices()[0])

_ROOT = pathlib.Path(checkpoint.__file__).parents[3]
_SMALL = [
  'model.context=8', 'model.width=8', 'model.depth=1', 'model.num_heads=1',
  'model.precision=float32', 'data.path=absent.txt',
]  # fmt: skip

# Run with a list of command lines: every one must be refused with one line,
# and none may unpickle, start a program or import what lies in a checkpoint.
_WATCH = """
import contextlib, io, json, sys
from craft_jax.main import main
from craft_jax.runtime import compilation_cache
import craft_jax.train.run, craft_jax.inference.evaluate
import craft_jax.inference.sampling.generate
events = []
WATCHED = {'pickle.find_class', 'os.system', 'os.exec', 'subprocess.Popen',
           'os.posix_spawn', 'ctypes.dlopen'}
def watch(event, args):
  if event in WATCHED or event == 'import' and 'evil' in str(args):
    events.append([event, str(args)])
sys.addaudithook(watch)
out = []
for command in json.loads(sys.argv[1]):
  err = io.StringIO()
  del events[:]
  with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
    code = main(command)
  out.append([command, code, err.getvalue(), list(events)])
print(json.dumps(out))
"""


class _Evil:
  def __reduce__(self):
    return os.system, ('touch hacked',)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A whole run directory of a tiny model."""
  workdir = tmp_path_factory.mktemp('run')
  cfg = config_lib.load_config('text', _SMALL)
  model = build(cfg.model, Vocabulary.byte().size, HERE)
  optimizer = build_optimizer(cfg, model, None)
  state = init_state(model, optimizer, jax.random.key(0), False)
  meta = checkpoint.Meta(3, cfg, Vocabulary.byte(), 'print')
  with checkpoint.Checkpointer(workdir) as saver:
    saver.save(state, meta)
  (workdir / 'config.json').write_text(config_lib.to_json(cfg))
  (workdir / 'checkpoints' / '3' / 'files.json').unlink()  # he signs his own
  return workdir


def _pickles(step):
  """Every file of ours is a pickle."""
  for path in step.rglob('*'):
    if path.is_file():
      path.write_bytes(pickle.dumps(_Evil()))


def _meta_is_a_pickle(step):
  (step / 'meta' / 'metadata').write_bytes(pickle.dumps(_Evil()))


def _handlers(step):
  """Orbax's own metadata names code to be used."""
  path = step / '_CHECKPOINT_METADATA'
  tree = json.loads(path.read_text())
  tree['item_handlers'] = {'state': 'evil.Handler', 'meta': 'os.system'}
  path.write_text(json.dumps(tree))
  path = step / 'state' / '_METADATA'
  text = path.read_text().replace('jax.Array', 'evil.Array')
  assert 'evil' in text
  path.write_text(text)
  (step / 'evil.py').write_text('open("hacked", "w")')


def _arrays_are_gone(step):
  shutil.rmtree(step / 'state')
  (step / 'state').mkdir()
  (step / 'state' / 'checkpoint.pkl').write_bytes(pickle.dumps(_Evil()))


def _huge(step):
  """The config promises a model of terabytes: nothing is allocated for it."""
  path = step / 'meta' / 'metadata'
  tree = json.loads(path.read_text())
  tree['config']['model']['width'] = 1 << 22
  path.write_text(json.dumps(tree))


@pytest.mark.slow
def test_nothing_is_executed(run, tmp_path):
  commands = []
  for spoil in (
    _pickles,
    _meta_is_a_pickle,
    _handlers,
    _arrays_are_gone,
    _huge,
  ):
    workdir = tmp_path / spoil.__name__
    shutil.copytree(run, workdir)
    spoil(workdir / 'checkpoints' / '3')
    commands += [
      ['inspect', f'--workdir={workdir}'],
      ['sample', f'--workdir={workdir}', '--prompt=a', '--max-chars=1'],
      ['eval', f'--workdir={workdir}'],
    ]
  done = subprocess.run(
    [sys.executable, '-c', _WATCH, json.dumps(commands)],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': f'{_ROOT}:{tmp_path}'},
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert len(found) == len(commands)
  assert not list(tmp_path.rglob('hacked'))
  for command, code, said, events in found:
    assert events == [], (command, events)
    harmless = command[0] == 'inspect' and '_huge' in command[1]
    if code == 0:  # what lies about the handlers is not even looked at
      assert '_handlers' in command[1] or harmless, (command, said)
      continue
    assert code == 2, (command, said)
    assert 'Traceback' not in said
    assert all(line.startswith('craft: ') for line in said.splitlines()), said


@pytest.mark.slow
def test_arrays_larger_than_their_files(tmp_path):
  """A small file of zeros must not become gigabytes of memory unasked."""
  import jax.numpy as jnp
  import orbax.checkpoint as ocp

  state = {'params': {'w': jnp.zeros((64, 1 << 20))}}
  meta = checkpoint.Meta(1, config_lib.load_config('text', _SMALL),
                         Vocabulary.byte(), 'print')  # fmt: skip
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save({'params': {'w': jnp.zeros(1)}}, meta)
  # Orbax compresses where it is not told otherwise.
  path = checkpoint.reader.step_path(tmp_path, 1) / 'state'
  ocp.PyTreeCheckpointer().save(path, state, force=True)
  with pytest.raises(checkpoint.reader.UserError, match='claims 268,435,456'):
    checkpoint.restore_raw(tmp_path, 1)
