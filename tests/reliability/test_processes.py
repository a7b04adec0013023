"""Several processes of one run over loopback: real `craft` commands."""

import json
import signal
import time

import numpy as np
import pytest
import runs

from craft_jax import checkpoint

_PARTS = {
  2: ['mesh.data=1', 'mesh.fsdp=2'],
  4: ['mesh.data=2', 'mesh.tensor=2', 'data.placement=grain'],
}


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
    'train', *runs.flags(text, *_PARTS[count], 'train.stop_at_step=20'),
    f'--workdir={workdir}',
  ]  # fmt: skip
  codes, errors = _run(count, arguments)
  assert codes == [0] * count, '\n'.join(errors)
  assert checkpoint.steps(workdir)[-1] == 20

  # One is killed: the others say so, soon.
  arguments = ['train', *runs.flags(text, *_PARTS[count])]
  arguments.append(f'--workdir={workdir}')
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
