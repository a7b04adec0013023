"""The run directory tells how a run was made, across resumes."""

import json
import os

import pytest

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config, Model
from craft_jax.errors import UserError
from craft_jax.runs import run_dir
from craft_jax.runs.lock import Lock, is_held
from craft_jax.runtime import files


def test_a_run_and_its_continuation(tmp_path, monkeypatch):
  monkeypatch.setattr(run_dir, '_git', lambda *args: None)
  cfg = Config(seed=5, model=Model(width=12))
  run = run_dir.open_run(tmp_path / 'a' / 'b', cfg, precision='float32')
  path = tmp_path / 'a' / 'b'
  assert config_lib.from_json((path / 'config.json').read_text()) == cfg
  first = json.loads((path / 'metadata.json').read_text())
  assert first['exit_reason'] == 'running' and first['end_time'] is None
  assert first['status'] == 'running' and first['pid'] == os.getpid()
  assert first['seed'] == 5 and first['precision'] == 'float32'
  assert first['packages']['jax'] and first['num_devices'] >= 1
  assert first['start_time'].endswith('+00:00')
  run.finish('stopped', 'stopped at step 30')
  run_dir.open_run(path, cfg).update(corpus_fingerprint='f')
  second = json.loads((path / 'metadata.json').read_text())
  assert second['corpus_fingerprint'] == 'f' and 'precision' not in second
  (earlier,) = second['earlier']
  assert earlier['exit_reason'] == 'stopped at step 30' and earlier['end_time']
  assert sorted(os.listdir(path)) == ['config.json', 'metadata.json']


def test_what_was_not_committed_is_kept(tmp_path, monkeypatch):
  said = {'rev-parse': 'abc\n', 'status': ' M a.py\n', 'diff': '-old\n+né\n'}
  monkeypatch.setattr(run_dir, '_git', lambda *args: said[args[0]])
  run = run_dir.open_run(tmp_path, Config())
  assert run.metadata['git_commit'] == 'abc+'
  kept = tmp_path / run.metadata['git_diff']
  assert kept.read_text() == '-old\n+né\n'
  # The next start has changes of its own; a huge one is cut.
  said['diff'] = 'x' * (3 << 20)
  again = run_dir.open_run(tmp_path, Config())
  (earlier,) = again.metadata['earlier']
  assert (tmp_path / earlier['git_diff']).read_text() == '-old\n+né\n'
  long = (tmp_path / again.metadata['git_diff']).read_text()
  assert long.endswith('\n... cut short\n') and len(long) < 2 << 20
  said |= {'status': '', 'diff': ''}
  clean = run_dir.open_run(tmp_path, Config()).metadata
  assert clean['git_commit'] == 'abc' and clean['git_diff'] is None


def test_what_rounds_otherwise_than_at_the_last_start(tmp_path, monkeypatch):
  monkeypatch.setattr(run_dir, '_git', lambda *args: None)
  for name in ('XLA_FLAGS', 'NVIDIA_TF32_OVERRIDE'):
    monkeypatch.delenv(name, raising=False)

  def start():
    return run_dir.open_run(tmp_path, Config()).what_rounds_otherwise()

  assert start() == '' and start() == ''
  # What only other devices read, or what rounds nothing, is left out.
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=x --xla_gpu_autotune_level=0')
  assert start() == ''
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
  line = start()
  assert 'XLA_FLAGS: unset -> --xla_cpu_enable_fast_math=true' in line
  assert 'NVIDIA_TF32_OVERRIDE: unset -> 0' in line
  assert start() == ''
  monkeypatch.delenv('XLA_FLAGS')
  assert 'XLA_FLAGS: --xla_cpu_enable_fast_math=true -> unset' in start()


def test_whether_somebody_writes_a_run(tmp_path):
  assert is_held(tmp_path / 'none') is False and is_held(tmp_path) is False
  lock = Lock(tmp_path)
  assert is_held(tmp_path) is True
  lock.close()
  (tmp_path / '.lock').touch()
  assert is_held(tmp_path) is False
  assert is_held('gs://bucket/run') is None


def test_foreign_folders_are_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(UserError, match=r'holds thesis\.tex and no run'):
    run_dir.open_run(tmp_path, Config())
  with pytest.raises(UserError, match='is a file'):
    run_dir.open_run(tmp_path / 'thesis.tex', Config())
  with pytest.raises(UserError, match='cannot make the run directory'):
    run_dir.open_run(tmp_path / 'thesis.tex' / 'run', Config())
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_damaged_metadata_is_one_line(tmp_path):
  run_dir.open_run(tmp_path, Config())
  (tmp_path / 'metadata.json').write_text('{')
  with pytest.raises(UserError, match=r'metadata\.json is damaged'):
    run_dir.open_run(tmp_path, Config())


def test_write_atomic_is_all_or_nothing(tmp_path, monkeypatch):
  path = tmp_path / 'f'
  files.write_atomic(path, 'old')
  assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(
    os.umask(0o22) or 0o22
  )

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    files.write_atomic(path, 'new')
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['f']
  monkeypatch.undo()
  files.write_atomic(path, 'né')
  assert path.read_bytes() == 'né'.encode()
