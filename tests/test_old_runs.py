"""Runs that an older version left behind: they open, go on and write as then.

`data/runs` holds three of them, made by version 0.1.0 (the command of each is
in its `metadata.json`): one over bytes, one over characters, one with averaged
parameters, a window and n-grams. Figures are those of that version.
"""

import hashlib
import json
import pathlib
import shutil

import pytest

from craft_jax.config import load
from craft_jax.config.settings import REMOVED, RENAMED
from craft_jax.main import main

_RUNS = pathlib.Path(__file__).parent / 'data' / 'runs'
# Losses after 80 steps and after 120, and what is written at temperature 0.
_KNOWN = {
  'byte': (1.7391136, 1.6231157, '7 squared is 1111; is 11111 square'),
  'character': (1.2200110, 1.1664520, '7 squared is 12221; é2\n211 squared'),
  'average': (2.5770811, 2.3657374, '7 squared squared squared squared '),
}


@pytest.fixture(params=_KNOWN)
def name(request, tmp_path, monkeypatch):
  """A copy of a run in the working folder, its text beside it."""
  shutil.copytree(_RUNS / request.param, tmp_path / request.param)
  shutil.copy(_RUNS / 'squares.txt', tmp_path)
  monkeypatch.chdir(tmp_path)
  return request.param


def _craft(capsys, *words):
  assert main(list(words)) == 0
  return capsys.readouterr().out


@pytest.mark.slow
def test_an_old_run_opens_and_goes_on(name, capsys):
  before, after, text = _KNOWN[name]
  where = f'--workdir={name}'
  figures = _craft(capsys, 'eval', where, '--json').splitlines()[-1]
  assert json.loads(figures)['val_loss'] == pytest.approx(before, rel=1e-5)
  said = _craft(
    capsys, 'sample', where, '--prompt=7 squared ', '--max-chars=24',
    '--temperature=0',
  )  # fmt: skip
  assert said.rstrip('\n') == text
  assert name in _craft(capsys, 'runs', 'list', '.')
  assert 'step' in _craft(capsys, 'inspect', where)
  summary = _craft(
    capsys, 'train', where, '--quiet', '--json',
    '--config.train.stop_at_step=0',
  ).splitlines()[-1]  # fmt: skip
  assert json.loads(summary)['step'] == 120
  assert json.loads(summary)['val_loss'] == pytest.approx(after, rel=1e-3)


@pytest.fixture
def older(tmp_path, monkeypatch):
  """A run whose config and checkpoint call a setting by another name."""
  shutil.copytree(_RUNS / 'byte', tmp_path / 'byte')
  shutil.copy(_RUNS / 'squares.txt', tmp_path)
  monkeypatch.chdir(tmp_path)
  step = tmp_path / 'byte' / 'checkpoints' / '80'
  for path in (tmp_path / 'byte' / 'config.json', step / 'meta' / 'metadata'):
    data = path.read_bytes().replace(b'"context":', b'"block_size":')
    path.write_bytes(data)
  files = json.loads((step / 'files.json').read_text())
  files['meta/metadata'] = [len(data), hashlib.sha256(data).hexdigest()]
  (step / 'files.json').write_text(json.dumps(files))
  load._tell_renamed.cache_clear()
  return tmp_path / 'byte'


def test_a_renamed_setting_is_mapped(older, capsys, monkeypatch):
  monkeypatch.setitem(RENAMED, 'model.block_size', 'model.context')
  assert main(['eval', f'--workdir={older}', '--json']) == 0
  out, err = capsys.readouterr()
  loss = json.loads(out.splitlines()[-1])['val_loss']
  assert loss == pytest.approx(_KNOWN['byte'][0], rel=1e-5)
  told = 'craft: setting model.block_size is now model.context\n'
  assert err.count(told) == 1
  columns = '--columns=model.context'
  assert main(['runs', 'list', str(older), columns, '--json']) == 0
  listed = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert listed['runs'][0]['model.context'] == 32
  # Also in a saved config and on the command line.
  flags = ['--config.model.block_size=16', '--json']
  spec = f'--config={older / "config.json"}'
  assert main(['config', 'show', spec, *flags]) == 0
  shown = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert shown['changed']['model.context'] == 16


def test_a_removed_setting_names_its_successor(older, capsys, monkeypatch):
  monkeypatch.setitem(REMOVED, 'model.block_size', 'use model.context')
  (older.parent / 'mine.py').write_text(
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  config = default_config()\n'
    '  config.model.block_size = 3\n  return config\n'
  )
  said = 'there is no setting model.block_size any more; use model.context\n'
  for words in (
    ['eval', f'--workdir={older}'],
    ['config', 'show', f'--config={older / "config.json"}'],
    ['config', 'show', '--config=toy', '--config.model.block_size=3'],
    ['config', 'show', f'--config={older.parent / "mine.py"}'],
  ):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.endswith(said) and err.count('\n') == 1
