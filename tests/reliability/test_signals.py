"""Every signal saves, wherever the run is, and the run goes on as if not."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import runs

from craft_jax.runs import checkpoint

_PHASES = ('compile', 'steps', 'evaluate', 'save')
_KINDS = ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP')
_DISPATCH = 4  # steps, see runs.flags


def _hit(phase, kinds, workdir, arguments, marks):
  """Sends the signals in a phase; standard error and the steps seen then."""
  marks.mkdir(exist_ok=True)
  (marks / phase).unlink(missing_ok=True)
  process = runs.start(
    *arguments, slow={'steps', phase}, env={'MARKS': str(marks)}
  )
  before = len(runs.rows(workdir))
  runs.wait_until(lambda: (marks / phase).exists(), process)
  if phase == 'steps':
    runs.wait_until(lambda: len(runs.rows(workdir)) > before + 3, process)
  seen = max([0, *(row['step'] for row in runs.rows(workdir))])
  for kind in kinds:
    process.send_signal(getattr(signal, kind))
    time.sleep(0.05)
  stderr = runs.finish(process)
  assert process.returncode == 75, (phase, kinds, stderr)
  assert 'Traceback' not in stderr
  return stderr, seen


@pytest.mark.slow
@pytest.mark.parametrize('turn', range(4))
def test_signals_in_every_phase(tmp_path, text, straight, turn):
  """Four interruptions of one run; over the turns every pair occurs."""
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  for i, phase in enumerate(_PHASES):
    kind = _KINDS[(i + turn) % 4]
    stderr, seen = _hit(phase, [kind], workdir, arguments, tmp_path / 'marks')
    step = checkpoint.steps(workdir)[-1]
    assert f'step {step} is saved' in stderr.splitlines()[-1]
    assert checkpoint.find_damage(workdir, step) == ''
    # One dispatch to be told of, one under way, one begun in between.
    assert step <= seen + 3 * _DISPATCH, (phase, kind)
    trained = [r['step'] for r in runs.rows(workdir) if 'loss' in r]
    assert trained == list(range(1, step + 1))
  process = runs.start(*arguments)
  stderr = runs.finish(process)
  assert process.returncode == 0, stderr
  assert runs.digests(workdir) == runs.digests(straight)
  assert runs.repeatable(workdir) == runs.repeatable(straight)


@pytest.mark.slow
def test_more_signals_do_not_cut_a_save_short(tmp_path, text):
  """SLURM's warning, its end, and an impatient person."""
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  kinds = ['SIGUSR1', 'SIGTERM', 'SIGINT', 'SIGTERM', 'SIGINT', 'SIGHUP']
  stderr, _ = _hit('save', kinds, workdir, arguments, tmp_path / 'marks')
  step = checkpoint.steps(workdir)[-1]
  assert f'step {step} is saved' in stderr.splitlines()[-1]
  assert checkpoint.find_damage(workdir, step) == ''


@pytest.mark.slow
def test_the_third_ctrl_c_gives_up(tmp_path, text):
  workdir = tmp_path / 'run'
  marks = tmp_path / 'marks'
  marks.mkdir()
  process = runs.start(
    'train', *runs.flags(text, 'checkpoint.every=4'), f'--workdir={workdir}',
    slow=['save', 'signal'], env={'MARKS': str(marks)},
  )  # fmt: skip
  runs.wait_until(lambda: (marks / 'save').exists(), process)
  handled = marks / 'signal'
  for _ in range(2):  # two that wait to be handled would be one
    process.send_signal(signal.SIGINT)
    runs.wait_until(handled.exists, process)
    handled.unlink()
  process.send_signal(signal.SIGINT)
  stderr = runs.finish(process)
  assert process.returncode == 130, stderr
  for step in checkpoint.steps(workdir):
    assert checkpoint.find_damage(workdir, step) == ''


@pytest.mark.slow
def test_a_signal_before_there_is_anything_to_save(tmp_path, text):
  workdir = tmp_path / 'run'
  process = runs.start('train', *runs.flags(text), f'--workdir={workdir}')
  time.sleep(0.6)  # it imports
  process.send_signal(signal.SIGTERM)
  stderr = runs.finish(process)
  assert process.returncode == 75, stderr
  assert stderr.splitlines()[-1].startswith('craft: interrupted')
  assert not workdir.exists() or not checkpoint.steps(workdir)


@pytest.mark.slow
def test_a_lost_terminal(tmp_path, text):
  """The terminal hangs up: nothing can be shown any more, all is saved."""
  workdir = tmp_path / 'run'
  ours, theirs = pty.openpty()
  marks = tmp_path / 'marks'
  marks.mkdir()

  own_it = 'import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)'
  process = runs.start(
    'train', *runs.flags(text), f'--workdir={workdir}',
    slow=['steps'], env={'MARKS': str(marks), 'TERM': 'xterm'},
    stdin=theirs, stdout=theirs, stderr=theirs,
    start_new_session=True, first=own_it,
  )  # fmt: skip
  os.close(theirs)
  os.set_blocking(ours, False)
  said = b''
  deadline = time.monotonic() + 120
  while len(runs.rows(workdir)) < 12 and time.monotonic() < deadline:
    try:
      said += os.read(ours, 1 << 16)
    except BlockingIOError:
      time.sleep(0.01)
  assert b'/60' in said  # a bar was shown
  os.close(ours)
  assert process.wait(timeout=60) == 75
  step = checkpoint.steps(workdir)[-1]
  assert step >= 12 - _DISPATCH
  assert checkpoint.find_damage(workdir, step) == ''
  trained = [r['step'] for r in runs.rows(workdir) if 'loss' in r]
  assert trained == list(range(1, step + 1))


@pytest.mark.slow
@pytest.mark.parametrize('closed', [(1,), (2,), (0, 1, 2)], ids=str)
def test_a_scheduler_that_closed_the_streams(tmp_path, text, closed):
  """It restarts what ends with 75, and nothing else."""
  workdir = tmp_path / 'run'
  words = [sys.executable, '-m', 'craft_jax.main', 'train',
           *runs.flags(text), f'--workdir={workdir}']  # fmt: skip
  shut = ' '.join(f'{number}>&-' for number in closed)
  process = subprocess.Popen(
    ['bash', '-c', f'exec "$@" {shut}', 'bash', *words],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    env=os.environ | {'PYTHONPATH': str(runs.ROOT)},
  )
  runs.wait_until(lambda: len(runs.rows(workdir)) > 3, process)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=240) == 75
  step = checkpoint.steps(workdir)[-1]
  assert checkpoint.find_damage(workdir, step) == ''
