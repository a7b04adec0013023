"""A run that is killed anywhere ends as if it had not been."""

import random
import signal
import time

import pytest
import runs

# 22 kills: while it starts or compiles (a time after the start), while it
# trains, evaluates or samples (a time after the first new row), in a save.
_MOMENTS = ('start',) * 8 + ('steps',) * 10 + ('save',) * 4
_SECONDS = {'start': 5.0, 'steps': 2.5, 'save': 0.02}


def _saving(workdir):
  folder = workdir / 'checkpoints'
  return folder.exists() and any('tmp' in p.name for p in folder.iterdir())


def _await(moment, process, workdir, before):
  """Until about the moment, or the end of the process."""
  reached = {
    'start': lambda: True,
    'steps': lambda: runs.rows(workdir)[before:],
    'save': lambda: _saving(workdir),
  }[moment]
  while process.poll() is None and not reached():
    time.sleep(0.002)
  end = time.monotonic() + random.uniform(0, _SECONDS[moment])
  while process.poll() is None and time.monotonic() < end:
    time.sleep(0.002)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, text):
  """No restart needs a hand, and the end is the straight run's.

  The compile cache starts empty, so kills cut its entries too.
  """
  random.seed(3)
  straight = runs.whole(tmp_path, text, *runs.SAMPLED)
  moments = random.sample(_MOMENTS, len(_MOMENTS))
  workdir, killed = tmp_path / 'killed', []
  cache = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled')}
  while True:
    before = len(runs.rows(workdir))
    process = runs.start(
      'train', *runs.flags(text, *runs.SAMPLED), f'--workdir={workdir}',
      slow=['steps'], env=cache,
    )  # fmt: skip
    if moments:
      _await(moments[-1], process, workdir, before)
    if moments and process.poll() is None:
      process.send_signal(signal.SIGKILL)
      process.communicate()
      steps = [row['step'] for row in runs.rows(workdir)]
      killed.append((moments.pop(), steps[-1] if steps else 0))
      continue
    stderr = runs.finish(process)
    assert process.returncode == 0, stderr
    assert 'persistent compilation cache' not in stderr, stderr
    assert runs.digests(workdir) == runs.digests(straight)
    assert runs.repeatable(workdir) == runs.repeatable(straight)
    if not moments:
      break
    workdir = workdir.with_name(f'{workdir.name}x')  # the rest hits another
  print('killed after steps', killed)
