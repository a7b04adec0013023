"""`craft scaling` as a process, on real small runs."""

import json
import os
import re
import subprocess
import sys

import pytest

from craft_jax.main import main

TEXT = ''.join(f'{i} and {i + 1}; ' for i in range(500))
# One process trains all of them: starting up would take most of the time.
_TRAIN = """
import sys
from craft_jax.main import main
for width, steps in ((8, 10), (8, 40), (16, 10), (16, 20), (32, 20), (32, 40)):
  code = main([
    'train', f'--workdir=runs/{width}-{steps}', '--config=text', '--quiet',
    '--config.data.path=my.txt', f'--config.model.width={width}',
    f'--config.train.steps={steps}', '--config.model.depth=1',
    '--config.model.num_heads=2', '--config.model.context=16',
    '--config.train.batch_size=8', '--config.optim.warmup_steps=2',
    '--config.eval.every=0', '--config.eval.batch_size=16',
    '--config.checkpoint.every=0', '--config.log.sample_chars=0',
  ])
  if code:
    sys.exit(code)
"""


def python(*args, cwd, code=0):
  done = subprocess.run(
    [sys.executable, *args],
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout if not code else done.stderr


def scaling(*args, cwd, code=0):
  return python('-m', 'craft_jax.main', 'scaling', *args, cwd=cwd, code=code)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('home')
  (path / 'my.txt').write_text(TEXT)
  python('-c', _TRAIN, cwd=path)
  return path


@pytest.mark.slow
def test_what_to_train_next(home):
  text = scaling('--flops=1e10', '--json', cwd=home)
  lines = text.splitlines()
  assert lines[0] == 'fitted to 6 finished runs'
  assert lines[1].startswith('val_loss = ')
  data = json.loads(lines[-1])
  assert len(data['runs']) == 6
  # The figures of the runs are those of their directories.
  summary = json.loads((home / 'runs/32-40/summary.json').read_text())
  (one,) = [run for run in data['runs'] if run['name'] == 'runs/32-40']
  assert one['loss'] == summary['val_loss']
  assert one['params'] == summary['params']
  assert one['tokens'] == 40 * 8 * 16
  assert one['flops'] == 40 * 8 * 16 * summary['flops_per_token']
  law, best = data['law'], data['best']
  assert best['loss'] == pytest.approx(
    law['E']
    + law['A'] * best['params'] ** -law['alpha']
    + law['B'] * best['tokens'] ** -law['beta']
  )
  for name in ('params', 'tokens'):
    low, high = data['best_intervals'][name]
    assert 0 < low < high
  # What it says to train can be trained, and costs about the budget.
  settings = data['next']['settings']
  steps = settings.pop('train.steps')
  assert steps * data['next']['tokens_per_step'] == pytest.approx(
    best['tokens'], rel=0.5 / steps + 1e-6
  )
  assert f'--config.train.steps={steps}' in text
  assert any('6 points are few' in note for note in data['notes'])
  assert (home / 'scaling.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_a_filter_and_no_picture(home):
  error = scaling('--where=model.width<=16', cwd=home, code=2)
  assert '4 points' in error and error.count('\n') == 1
  error = scaling('--metric=val_los', cwd=home, code=2)
  assert "did you mean 'val_loss'" in error
  text = scaling('--metric=val_bpb', '--output=', cwd=home)
  assert re.search('^val_bpb = ', text, re.M) and 'picture' not in text


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--flops=-1'], '--flops=-1 must be more than 0'),
    (['--output=x.gif'], 'must end in one of'),
    (['nowhere'], 'no folder nowhere'),
    (['.'], 'no finished run with a val_loss'),
  ],
)
def test_mistakes_are_one_line(argv, words, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main(['scaling', *argv]) == 2
  out, err = capsys.readouterr()
  assert words in err and err.count('\n') == 1 and not out
