"""Runs that an older version left behind: they open, go on and write as then.

`data/runs` holds three of them, made by version 0.1.0 (the command of each is
in its `metadata.json`): one over bytes, one over characters, one with averaged
parameters, a window and n-grams. Figures are those of that version.
"""

import json
import pathlib
import shutil

import pytest

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
