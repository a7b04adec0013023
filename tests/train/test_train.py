"""Whole runs: exact continuation, refusals, what is written."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from craft_jax.errors import RunFailed, UserError
from craft_jax.main import main
from craft_jax.runs import checkpoint, columns, digest, parallel_read
from craft_jax.train.run import train

ROOT = pathlib.Path(__file__).parents[2]


def digests(workdir):
  report = checkpoint.report(workdir, 'latest')
  return [report[k] for k in ('step', 'params_sha256', 'opt_state_sha256')] + [
    report.get('ema_sha256')
  ]


def rows(workdir):
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def losses(workdir):
  return {r['step']: r['loss'] for r in rows(workdir) if 'loss' in r}


VARIANTS = {
  'plain': [],
  'all': [
    'train.ema=0.9',
    'model.dropout=0.2',
    'data.noise_rate=0.1',
    'train.accumulate=2',
    'data.order=windows',
    'data.placement=grain',
    'optim.name=adamw',
  ],
}


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_resumed_equals_straight(toy, tmp_path, variant):
  extra = VARIANTS[variant]
  train(toy(*extra), tmp_path / 'a', quiet=True)
  for stop in (5, 9, 0):
    cfg = toy(*extra, f'train.stop_at_step={stop}')
    summary = train(cfg, tmp_path / 'b', quiet=True)
    assert summary['step'] == (stop or 12)
  assert digests(tmp_path / 'a') == digests(tmp_path / 'b')
  straight, resumed = losses(tmp_path / 'a'), losses(tmp_path / 'b')
  assert list(straight) == list(range(1, 13))
  assert straight == resumed
  trained = [r['step'] for r in rows(tmp_path / 'b') if 'loss' in r]
  assert trained == list(range(1, 13))  # none twice


@pytest.mark.slow
def test_samples_on_the_way_change_nothing(toy, tmp_path):
  train(toy(), tmp_path / 'a', quiet=True)
  extra = ('log.sample_every=5', 'log.sample_chars=8')
  train(toy(*extra, 'train.stop_at_step=7'), tmp_path / 'b', quiet=True)
  summary = train(toy(*extra), tmp_path / 'b', quiet=True)
  assert digests(tmp_path / 'a') == digests(tmp_path / 'b')
  assert losses(tmp_path / 'a') == losses(tmp_path / 'b')
  found = [(r['step'], r['text']) for r in rows(tmp_path / 'b') if 'text' in r]
  assert [step for step, _ in found] == [5, 7, 10, 12]
  assert found[-1][1] == summary['sample']
  seconds = [r['seconds'] for r in rows(tmp_path / 'b') if 'seconds' in r]
  assert seconds == sorted(seconds)  # over both starts


@pytest.mark.slow
def test_steps_per_call_and_placement_change_nothing(toy, tmp_path):
  train(toy('train.steps_per_call=5'), tmp_path / 'a', quiet=True)
  train(toy('train.steps_per_call=1'), tmp_path / 'b', quiet=True)
  train(
    toy('data.placement=grain', 'train.steps_per_call=5'),
    tmp_path / 'c',
    quiet=True,
  )
  a, b, c = (losses(tmp_path / name) for name in 'abc')
  np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6)
  np.testing.assert_allclose(list(a.values()), list(c.values()), rtol=1e-6)


@pytest.mark.slow
def test_what_a_run_leaves(toy, tmp_path):
  cfg = toy('eval.every=4', 'checkpoint.every=6', 'checkpoint.keep=1')
  summary = train(cfg, tmp_path / 'run', quiet=True)
  for key in ('val_loss', 'val_bpc', 'val_bpb', 'chars_per_second', 'params'):
    assert summary[key] > 0
  evaluated = [r['step'] for r in rows(tmp_path / 'run') if 'val_loss' in r]
  assert evaluated == [4, 8, 12]
  best = checkpoint.best_step(tmp_path / 'run')
  assert set(checkpoint.steps(tmp_path / 'run')) == {best, 12}
  row = next(r for r in rows(tmp_path / 'run') if r['step'] == 3)
  for key in (
    'bpc', 'bpb', 'accuracy', 'grad_norm', 'update_norm', 'param_norm',
    'learning_rate', 'chars_per_second', 'data_wait_seconds',
  ):  # fmt: skip
    assert np.isfinite(row[key]), key
  metadata = json.loads((tmp_path / 'run' / 'metadata.json').read_text())
  assert metadata['exit_reason'] == 'finished'
  assert metadata['precision'] == 'float32'
  assert metadata['status'] == 'finished'
  assert metadata['params'] == summary['params']
  assert len(metadata['vocabulary_fingerprint']) == 64
  assert metadata['tokens_per_step'] == 8 * 16
  clock = [r['seconds'] for r in rows(tmp_path / 'run')]
  assert clock == sorted(clock) and clock[0] > 0
  # A finished run only tells its result again.
  again = train(cfg, tmp_path / 'run', quiet=True)
  assert again['val_loss'] == summary['val_loss']
  assert rows(tmp_path / 'run')[-1]['step'] == 12
  assert [r['step'] for r in rows(tmp_path / 'run') if 'val_loss' in r] == [
    4, 8, 12,
  ]  # fmt: skip


@pytest.mark.slow
def test_resume_refuses_another_run(toy, tmp_path, text_file):
  workdir = tmp_path / 'run'
  train(toy('train.stop_at_step=2'), workdir, quiet=True)
  with pytest.raises(UserError, match=r'model.width: 16 -> 32') as e:
    train(toy('model.width=32', 'seed=1'), workdir, quiet=True)
  assert 'seed: 0 -> 1' in str(e.value)
  changed = tmp_path / 'other.txt'
  changed.write_text(text_file.read_text() + 'more')
  with pytest.raises(UserError, match='the corpus is not the one'):
    train(toy(f'data.path={changed}'), workdir, quiet=True)
  assert checkpoint.steps(workdir) == [2]
  # Placement and reporting may change.
  train(
    toy(
      'train.stop_at_step=3',
      'log.every=2',
      'mesh.data=1',
      'mesh.fsdp=2',
      'model.remat=block',
    ),
    workdir,
    quiet=True,
  )
  assert checkpoint.steps(workdir)[-1] == 3


@pytest.mark.slow
def test_nonfinite_stops(toy, tmp_path):
  cfg = toy(
    'optim.name=sgd',
    'optim.schedule=constant',
    'optim.learning_rate=1e38',
    'model.logit_cap=0',
    'optim.clip_norm=0',
    'optim.weight_decay=0',
    'checkpoint.every=1',
  )
  with pytest.raises(RunFailed, match=r'step \d+: .* is not finite') as e:
    train(cfg, tmp_path / 'run', quiet=True)
  assert e.value.code == 1
  assert all(np.isfinite(v) for v in losses(tmp_path / 'run').values())
  metadata = json.loads((tmp_path / 'run' / 'metadata.json').read_text())
  assert 'not finite' in metadata['exit_reason']


@pytest.mark.slow
@pytest.mark.parametrize('kind', [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves(text_file, tmp_path, kind):
  workdir = tmp_path / 'run'
  command = [
    sys.executable, '-m', 'craft_jax.main', '--config=toy',
    f'--workdir={workdir}', '--config.train.steps=100000',
    '--config.log.every=1', '--config.data.source=path',
    f'--config.data.path={text_file}', '--config.data.split=fraction',
    '--config.data.valid_fraction=0.1',
  ]  # fmt: skip
  process = subprocess.Popen(
    command, cwd=ROOT, stderr=subprocess.PIPE, env=os.environ, text=True
  )
  deadline = time.monotonic() + 120
  metrics = workdir / 'metrics.jsonl'
  while not (metrics.exists() and metrics.read_text().count('\n') > 3):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.1)
  process.send_signal(kind)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 75, stderr
  assert 'Traceback' not in stderr
  step = checkpoint.steps(workdir)[-1]
  assert f'step {step} is saved' in stderr.splitlines()[-1]
  assert rows(workdir)[-1]['step'] == step


@pytest.mark.slow
def test_a_finished_run_starts_again(text_file, tmp_path, capsys, monkeypatch):
  """The README's first command, twice."""
  monkeypatch.chdir(tmp_path)
  flags = [
    '--config=text', f'--config.data.path={text_file}', '--workdir=run',
    '--config.model.width=16', '--config.model.depth=1',
    '--config.model.num_heads=1', '--config.model.context=16',
    '--config.train.steps=6', '--config.optim.warmup_steps=1', '--json',
  ]  # fmt: skip
  said = []
  for _ in range(2):
    assert main(flags) == 0
    said.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
  assert said[0]['val_loss'] == said[1]['val_loss']
  assert said[0]['sample'] == said[1]['sample']
  evaluated = [r['step'] for r in rows('run') if 'val_loss' in r]
  assert evaluated == [6]


@pytest.mark.slow
def test_a_text_nobody_can_print(tmp_path):
  """An ASCII terminal does not cost a run its results."""
  (tmp_path / 'han.txt').write_text('漢字かな交じり文' * 200)
  command = [
    sys.executable, '-m', 'craft_jax.main', 'train', '--config=text',
    '--config.data.path=han.txt', '--workdir=run', '--config.model.width=16',
    '--config.model.depth=1', '--config.model.num_heads=1',
    '--config.model.context=16', '--config.train.steps=6',
    '--config.text.vocabulary=char', '--config.optim.warmup_steps=1',
    '--config.eval.batch_size=2', '--config.train.batch_size=2',
  ]  # fmt: skip
  done = subprocess.run(
    command,
    cwd=tmp_path,
    env=os.environ | {'PYTHONIOENCODING': 'ascii', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  assert b'validation' in done.stdout


def test_a_run_that_ends_keeps_its_rows_as_columns(toy, tmp_path, monkeypatch):
  train(toy(), tmp_path / 'small', quiet=True)
  assert not (tmp_path / 'small' / columns.COLUMNS).exists()
  monkeypatch.setattr(parallel_read, '_WORTH', 1)
  train(toy(), tmp_path / 'run', quiet=True)
  kept = [tmp_path / 'run' / name for name in (columns.COLUMNS, digest.DIGEST)]
  before = [path.stat().st_mtime_ns for path in kept]
  loss = columns.read(tmp_path / 'run', columns.TRAIN, ['loss'])['loss']
  assert len(loss) == 12 and np.isfinite(loss).all()
  assert digest.read(tmp_path / 'run').step == 12
  assert before == [path.stat().st_mtime_ns for path in kept]
