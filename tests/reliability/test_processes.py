"""Several processes of one run over loopback: real `craft` commands."""

import functools
import json
import signal
import time

import numpy as np
import pytest
import runs

from craft_jax.runs import checkpoint

_PARTS = {
  2: ['mesh.data=1', 'mesh.fsdp=2'],
  4: ['mesh.data=2', 'mesh.tensor=2', 'data.placement=grain'],
}

# Long enough for many choices of how many steps a dispatch takes.
_LONG = [
  'train.steps=1500', 'train.steps_per_call=0', 'log.every=100',
  'eval.every=500', 'checkpoint.every=500',
]  # fmt: skip


def _run(count, arguments, each=None):
  """Runs all to the end; their exit codes and outputs."""
  started = runs.start_together(count, arguments, each)
  errors = [runs.finish(process) for process in started]
  return [process.returncode for process in started], errors


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_together_equals_alone(tmp_path, text, straight, count):
  """Train, evaluate, save, be killed, resume: the batches of one process."""
  workdir = tmp_path / 'run'
  arguments = [
    'train', f'--workdir={workdir}',
    *runs.flags(text, *_PARTS[count], *runs.SAMPLED),
  ]  # fmt: skip
  codes, errors = _run(count, [*arguments, '--stop-at-step=20'])
  assert codes == [0] * count, '\n'.join(errors)
  assert checkpoint.steps(workdir)[-1] == 20

  # One is killed: the others say so, soon.
  started = runs.start_together(count, arguments)
  runs.wait_until(
    lambda: runs.rows(workdir)[-1]['step'] > 24, started[0], seconds=120
  )
  started[-1].send_signal(signal.SIGKILL)
  began = time.monotonic()
  errors = [runs.finish(process) for process in started[:-1]]
  seconds = time.monotonic() - began
  started[-1].communicate()
  # JAX's own watchdog aborts (134 for a shell), where it is faster than the
  # failed transfer.
  found = {p.returncode for p in started[:-1]}
  assert found <= {69, -signal.SIGABRT}, errors
  assert all(
    'another process' in e or 'another task died' in e for e in errors
  ), errors
  assert seconds < 90

  codes, errors = _run(count, arguments)
  assert codes == [0] * count, '\n'.join(errors)
  runs.same_course(workdir, straight)
  assert [r['step'] for r in runs.rows(workdir) if 'loss' in r] == list(
    range(1, 61)
  )

  # The command that evaluates, by all and by one.
  found = []
  for several in (True, False):
    command = ['eval', f'--workdir={workdir}', '--json']
    started = (
      runs.start_together(count, command) if several else [runs.start(*command)]
    )
    out, err = started[0].communicate(timeout=240)
    for process in started[1:]:
      said = process.communicate(timeout=60)[0]
      assert 'val_loss' not in said and 'nats' not in said  # Gloo says hello
    assert started[0].returncode == 0, err
    found.append(json.loads(out.splitlines()[-1])['val_loss'])
  np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


# A process whose clock runs at a rate of its own and jumps, which is late now
# and then, and which believes that it has seen better checkpoints than there
# are: none of this may reach what is run.
_UNEQUAL = """
import random, time
random.seed({0})
clock, ahead = time.perf_counter, [0.0]
def unequal():
  if random.random() < 0.3:
    ahead[0] += random.uniform(-0.5, 1)
  if random.random() < 0.02:
    time.sleep(random.uniform(0, 0.3))
  return clock() * (1 + 3 * {0}) + ahead[0]
time.perf_counter = unequal
if {0}:
  from craft_jax.train import run
  saved = run._saved
  run._saved = lambda workdir: saved(workdir) | dict(best_rank=0.01)
"""


@pytest.fixture(scope='module')
def alone(tmp_path_factory, text):
  """1,500 steps of one process on a mesh of so many CPU devices."""

  @functools.cache
  def train(count: int):
    workdir = tmp_path_factory.mktemp('alone') / 'run'
    flags = runs.flags(text, *_LONG, *_PARTS[count])
    process = runs.start(
      'train', *flags, f'--workdir={workdir}',
      f'--config.mesh.cpu_devices={count}',
    )  # fmt: skip
    error = runs.finish(process, seconds=600)
    assert process.returncode == 0, error
    return workdir

  return train


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_unequal_processes_run_the_same(tmp_path, text, alone, count):
  """Unequal clocks, speeds and disks; with a stop and a resume between."""
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text, *_LONG, *_PARTS[count])]
  arguments.append(f'--workdir={workdir}')
  started = runs.start_together(count, arguments, first=_UNEQUAL.format)
  # Four processes that wait for each other take minutes on two busy cores.
  runs.wait_until(
    lambda: len(checkpoint.steps(workdir)) > 0, started[0], seconds=600
  )
  started[-1].send_signal(signal.SIGTERM)
  errors = [runs.finish(process) for process in started]
  assert [p.returncode for p in started] == [75] * count, errors
  started = runs.start_together(count, arguments, first=_UNEQUAL.format)
  errors = [runs.finish(process, seconds=900) for process in started]
  assert [p.returncode for p in started] == [0] * count, '\n'.join(errors)
  assert checkpoint.steps(workdir)[-1] == 1500
  assert runs.digests(workdir) == runs.digests(alone(count))


# The first save finds no room, in process {0} alone.
_NO_ROOM = """
from craft_jax.runs.checkpoint.writer import Checkpointer
room, left = Checkpointer._make_room, [1 if {0} == {1} else 0]
def no_room(self, step, state):
  if left:
    if left.pop():
      raise OSError('no space left')
  room(self, step, state)
Checkpointer._make_room = no_room
"""


@pytest.mark.slow
@pytest.mark.parametrize('which', [0, 1])
def test_a_save_that_fails_in_one_fails_in_all(tmp_path, text, which):
  """They go on together and save at the next step that is due."""
  workdir = tmp_path / 'run'
  started = runs.start_together(
    2,
    ['train', *runs.flags(text), f'--workdir={workdir}'],
    first=lambda i: _NO_ROOM.format(i, which),
  )
  errors = [runs.finish(process) for process in started]
  assert [p.returncode for p in started] == [0, 0], errors
  assert 'could not save step 10' in errors[0]
  assert checkpoint.steps(workdir)[-1] == 60


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['SIGTERM', 'SIGUSR1'])
def test_a_signal_to_one_stops_all(tmp_path, text, kind):
  """They agree on the step, save it and go on from it."""
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  arguments.append('--config.train.steps=4000')
  started = runs.start_together(2, arguments)
  runs.wait_until(lambda: len(runs.rows(workdir)) > 10, started[0])
  started[1].send_signal(getattr(signal, kind))
  errors = [runs.finish(process) for process in started]
  assert [p.returncode for p in started] == [75, 75], errors
  step = checkpoint.steps(workdir)[-1]
  assert all(f'step {step} is saved' in e for e in errors)
  assert checkpoint.find_damage(workdir, step) == ''
  assert runs.rows(workdir)[-1]['step'] == step


@pytest.mark.slow
@pytest.mark.parametrize('what', ['config', 'text', 'nothing'])
def test_processes_that_differ_refuse(tmp_path, text, what):
  other = tmp_path / 'other.txt'
  other.write_text(text.read_text() + 'and more')
  each = {
    'config': {1: ['--config.optim.learning_rate=0.5']},
    'text': {1: [f'--config.data.path={other}']},
    'nothing': {1: [f'--config.data.path={tmp_path / "absent.txt"}']},
  }[what]
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  codes, errors = _run(2, arguments, each)
  assert codes == [2, 2], errors
  lines = [e.splitlines()[-1] for e in errors]
  if what == 'nothing':
    assert 'process 1 could not start' in lines[0]
    assert 'absent.txt' in lines[1]
  else:
    assert all(f'the {what} of process 1 is not' in line for line in lines)
  assert not workdir.exists() or not checkpoint.steps(workdir)


# Set in one process, each compiles another program.
_VARIABLES = {
  'XLA_FLAGS': '--xla_cpu_enable_fast_math=true',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', _VARIABLES)
def test_environments_that_differ_refuse(tmp_path, text, name):
  """One line in every process before anything is compiled or written."""
  workdir = tmp_path / 'run'
  setting = f'import os\nos.environ[{name!r}] = {_VARIABLES[name]!r}'
  started = runs.start_together(
    4,
    ['train', *runs.flags(text), f'--workdir={workdir}'],
    first=lambda i: setting if i == 2 else '',
  )
  errors = [runs.finish(process) for process in started]
  assert [p.returncode for p in started] == [2] * 4, errors
  lines = [e.splitlines()[-1] for e in errors]
  assert all('XLA_FLAGS) of process 2 is not that of' in e for e in lines)
  assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize('flag', ['--stride=4', '--split=train', '--no-ema'])
def test_evaluations_that_differ_refuse(straight, flag):
  """Neither a wait for ever nor a mean over two kinds of weights."""
  command = ['eval', f'--workdir={straight}']
  codes, errors = _run(2, command, {1: [flag]})
  assert codes == [2, 2], errors
  lines = [e.splitlines()[-1] for e in errors]
  assert all('the command of process 1 is not that of' in e for e in lines)


@pytest.mark.slow
def test_pinned_settings_may_differ(tmp_path, text, straight):
  """What Craft pins in each process does no harm in one of them."""
  workdir = tmp_path / 'run'
  setting = (
    "import os\nos.environ['JAX_ENABLE_X64'] = '1'\n"
    "os.environ['JAX_DEFAULT_PRNG_IMPL'] = 'rbg'"
  )
  started = runs.start_together(
    2,
    ['train', *runs.flags(text, *_PARTS[2]), f'--workdir={workdir}'],
    first=lambda i: setting if i else '',
  )
  errors = [runs.finish(process) for process in started]
  assert [p.returncode for p in started] == [0, 0], errors
  runs.same_course(workdir, straight)
