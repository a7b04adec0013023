"""Runs in folders whose names some layer below could read as syntax."""

import json
import os
import pathlib

import pytest

from craft_jax import checkpoint
from craft_jax.main import main

_NAMES = [
  'lr=[0.1,0.2]', '[2024-01-01] try', '[!a]', 'a*b', 'what?', '**', '{x}',
  '{a,b}', '%s', '50%', '%20', 'a b', ' a ', "it's", '"quoted"', '$HOME',
  '`x`', '$(x)', 'a#b', 'a?b=c&d', '~x', 'x~', 'back\\slash', 'new\nline',
  'größe 大 \U0001f600', 'a:b', 's3:', 'file:', '-x', '.dot', 'a;b|c', '<b>',
  'a@b', 'a,b', '!x', 'a\tb',
]  # fmt: skip


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
  """Corpora and programs, prepared once."""
  return tmp_path_factory.mktemp('cache')


@pytest.mark.slow
@pytest.mark.parametrize('name', _NAMES)
def test_a_run_in_a_folder(tmp_path, text, compiled, capsys, monkeypatch, name):
  """It trains, goes on, and every command that reads a run reads it."""
  monkeypatch.chdir(tmp_path)
  folder = pathlib.Path(name)
  flags = [
    '--config=text', f'--config.data.path={text}',
    f'--config.data.cache_dir={compiled}', '--config.model.context=16',
    '--config.model.width=16', '--config.model.depth=1',
    '--config.model.num_heads=2', '--config.model.precision=float32',
    '--config.train.steps=4', '--config.train.batch_size=8',
    '--config.train.steps_per_call=2', '--config.optim.warmup_steps=1',
    '--config.eval.batch_size=16', '--config.log.sample_chars=0',
  ]  # fmt: skip
  # Absolute too: the name is then in what every layer is handed.
  for workdir in (folder / 'run', tmp_path / folder / 'absolute'):
    where = f'--workdir={workdir}'
    train = ['train', *flags, where, '--quiet']
    assert main([*train, '--stop-at-step=2']) == 0, capsys.readouterr().err
    assert checkpoint.find_damage(workdir, 2) == ''
    assert main(train) == 0, capsys.readouterr().err
    assert checkpoint.steps(workdir) == [2, 4]
    capsys.readouterr()
    for command in (
      ['inspect', where, '--json'],
      ['sample', where, '--prompt=1', '--max-chars=4', '--seed=0'],
      ['eval', where, '--step=2'],
      ['runs', 'show', f'./{workdir}' if name[0] == '-' else str(workdir)],
    ):
      if command[0] == 'runs' and workdir.is_absolute():
        command[2] = str(workdir)
      assert main(command) == 0, (command, capsys.readouterr().err)
      said = capsys.readouterr()
      assert 'Traceback' not in said.err
      if command[0] == 'inspect':
        found = json.loads(said.out.splitlines()[-1])
        assert found['step'] == 4
  here = f'.{os.sep}{name}' if name[0] == '-' else name
  assert main(['runs', 'list', here]) == 0
  assert capsys.readouterr().out
  page = tmp_path / 'report.html'
  command = ['runs', 'report', here, f'--output={page}']
  assert main(command) == 0, capsys.readouterr().err
  assert page.stat().st_size
  pathlib.Path(name, 'corpus.txt').write_text('some text to read\n' * 9)
  corpus = f'--config.data.path={pathlib.Path(name, "corpus.txt").absolute()}'
  assert main(['data', 'stats', '--config=text', corpus]) == 0, (
    capsys.readouterr().err
  )
