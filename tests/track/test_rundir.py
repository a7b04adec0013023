"""The run directory tells how a run was made, across resumes."""

import json
import os

import pytest

from craft_jax import config, files
from craft_jax.errors import UserError
from craft_jax.settings import Config, Model
from craft_jax.track import rundir


def test_a_run_and_its_continuation(tmp_path):
  cfg = Config(seed=5, model=Model(width=12))
  run = rundir.open_run(tmp_path / 'a' / 'b', cfg, precision='float32')
  path = tmp_path / 'a' / 'b'
  assert config.from_json((path / 'config.json').read_text()) == cfg
  first = json.loads((path / 'metadata.json').read_text())
  assert first['exit_reason'] == 'running' and first['end_time'] is None
  assert first['seed'] == 5 and first['precision'] == 'float32'
  assert first['packages']['jax'] and first['num_devices'] >= 1
  assert first['start_time'].endswith('+00:00')
  run.finish('stopped at step 30')
  rundir.open_run(path, cfg).update(corpus_fingerprint='f')
  second = json.loads((path / 'metadata.json').read_text())
  assert second['corpus_fingerprint'] == 'f' and 'precision' not in second
  (earlier,) = second['earlier']
  assert earlier['exit_reason'] == 'stopped at step 30' and earlier['end_time']
  assert sorted(os.listdir(path)) == ['config.json', 'metadata.json']


def test_foreign_folders_are_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(UserError, match=r'holds thesis\.tex and no run'):
    rundir.open_run(tmp_path, Config())
  with pytest.raises(UserError, match='is a file'):
    rundir.open_run(tmp_path / 'thesis.tex', Config())
  with pytest.raises(UserError, match='cannot make the run directory'):
    rundir.open_run(tmp_path / 'thesis.tex' / 'run', Config())
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_damaged_metadata_is_one_line(tmp_path):
  rundir.open_run(tmp_path, Config())
  (tmp_path / 'metadata.json').write_text('{')
  with pytest.raises(UserError, match=r'metadata\.json is damaged'):
    rundir.open_run(tmp_path, Config())


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
