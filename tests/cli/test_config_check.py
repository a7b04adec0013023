"""`craft config check`: all that would stop a run, at once."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

import jax
import pytest

from craft_jax import main
from craft_jax.config import load as config_lib
from craft_jax.errors import UserError
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of, resolve_precision
from craft_jax.runtime.host_memory import Room
from craft_jax.train import plan, preflight
from craft_jax.train.plan import advice, memory

_TINY = [
  '--config.model.context=16', '--config.model.width=16',
  '--config.model.depth=1', '--config.model.num_heads=2',
]  # fmt: skip


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
  """`check(*flags) -> (exit code, {check: [(status, detail)]})`."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('CRAFT_CACHE', str(tmp_path / 'cache'))
  pathlib.Path('my.txt').write_text('a fox, a dog, and a hen. ' * 100)

  def run(*flags, text='my.txt'):
    given = [f'--config.data.path={text}', *_TINY]
    argv = ['config', 'check', '--config=text', *given, *flags, '--json']
    code = main.main(argv)
    out, err = capsys.readouterr()
    table, last = out.rstrip().rsplit('\n', 1)
    assert max(map(len, table.splitlines())) <= 80
    found = json.loads(last)
    assert found['ok'] == (code == 0)
    rows: dict[str, list] = {}
    for row in found['checks']:
      rows.setdefault(row['check'], []).append((row['status'], row['detail']))
    wrong = sum(r['status'] == 'problem' for r in found['checks'])
    if wrong:
      total = len(found['checks'])
      assert err == f'craft: {wrong} of {total} checks found a problem\n'
    return code, rows

  return run


def test_a_run_that_could_start(check):
  code, rows = check()
  assert code == 0
  assert {status for (status, _), *_ in rows.values()} == {'ok'}
  assert list(rows) == [
    'settings', 'writers', 'text', 'vocabulary', 'splits', 'steps',
    'sample prompt', 'devices', 'memory', 'run directory', 'disk',
  ]  # fmt: skip
  assert rows['splits'] == [('ok', 'train 2,250, valid 250 tokens')]
  assert '2.5 kB in 1 document' in rows['text'][0][1]
  # Nothing is trained, or made where the run would be.
  assert not pathlib.Path('runs').exists()


def test_memory_is_what_training_decides(check, monkeypatch, tmp_path):
  """Just inside both go on, and one byte less refuses both."""
  flags = ['--config.train.batch_size=64', '--config.mesh.cpu_devices=1']
  check(*flags)  # the text is ready
  cfg = config_lib.load_config(
    'text',
    [f.removeprefix('--config.') for f in ['data.path=my.txt', *_TINY, *flags]],
  )
  precision = resolve_precision(
    cfg.model.precision, platform_of(jax.devices()[0])
  )
  cfg = dataclasses.replace(
    cfg, model=dataclasses.replace(cfg.model, precision=precision)
  )
  layout = plan.Layout(1, 1, 1)
  used = memory.memory(plan.sketch(cfg, 260), layout, 'cpu')
  least = used.state + advice.LEAST * (used.total - used.state)
  for left, refused in ((least + 1, False), (least - 1, True)):
    given = Room(left, 'a limit')
    for module in (preflight, advice):
      monkeypatch.setattr(module, 'room', lambda given=given: given)
    code, rows = check(*flags, '--devices=1')
    (status, detail), *_ = rows['memory']
    assert (code == 2) == refused == (status == 'problem'), rows
    model = build(cfg.model, 260, platform_of(jax.devices()[0]))
    try:
      advice.check_start(cfg, model, layout._asdict(), tmp_path)
    except UserError as e:
      assert refused and str(e) == detail
    else:
      assert not refused and 'in doubt' in detail


def test_every_problem_of_the_settings_is_told(check):
  code, rows = check(
    '--config.model.widht=3', '--config.train.batch_size=no',
    '--config.model.dropout=2', '--config.train.accumulate=3',
    '--config.optim.decay_steps=7', '--config.eval.stride=99',
  )  # fmt: skip
  assert code == 2
  text = '\n'.join(detail for _, detail in rows['settings'])
  for words in (
    "did you mean 'model.width'?", 'train.batch_size=no must be of type int',
    'model.dropout=2.0 must be at most 0.95', 'train.accumulate=3',
    'needs optim.schedule=wsd', 'eval.stride=99 is longer',
  ):  # fmt: skip
    assert words in text
  assert len(rows['settings']) == 6
  # What does not depend on them is still looked at.
  assert rows['text'][0][0] == 'ok'
  assert rows['devices'][0][0] == 'not checked'


def test_every_problem_of_a_file_is_told(check):
  pathlib.Path('mine.py').write_text(
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n'
    '  config = default_config()\n'
    '  config.train.steps = 0\n'
    "  config.model.mlp = 'gleu'\n"
    '  return config\n'
  )
  code, rows = check('--config=mine.py', '--config.data.source=path')
  assert code == 2
  second, first = (detail for _, detail in rows['settings'])
  assert first.startswith('mine.py:4: train.steps=0 must be at least 1')
  assert second.startswith('mine.py:5: ') and "'gelu'" in second


@pytest.mark.parametrize(
  'flags, name, words',
  [
    (['--config.data.valid_fraction=0'], 'settings', 'above 0'),
    (['--config.model.context=2250'], 'splits', 'the train split has 2250'),
    (
      ['--config.train.steps=9000000', '--config.train.batch_size=500'],
      'steps', 'lower one of them',
    ),
    (
      ['--config.text.vocabulary=char', '--config.log.sample_prompt=X'],
      'sample prompt', 'log.sample_prompt',
    ),
    (['--config.mesh.tensor=4', '--devices=8'], 'devices', 'num_heads=2'),
    (['--config.mesh.data=3', '--devices=2'], 'devices', 'do not divide 2'),
    (
      ['--device=l4', '--devices=3', '--config.train.batch_size=32'],
      'devices', 'eval.batch_size = 64 does not divide',
    ),
    (
      ['--device=l4', '--config.model.context=2000',
       '--config.train.batch_size=65536'],
      'memory', 'try --config.train.accumulate=',
    ),
    (['--workdir=my.txt'], 'run directory', 'is a file'),
    (['--workdir=.'], 'run directory', 'and no run'),
    (['--workdir=/proc/none'], 'run directory', 'cannot be written'),
    (['--config.data.cache_dir=/proc/none'], 'disk', 'data.cache_dir=DIR'),
    (['--config.data.path=nope.txt'], 'text', 'nope.txt does not exist'),
    (['--config.text.clean=lowr'], 'text', "'lower'"),
  ],
  ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)  # fmt: skip
def test_a_problem(check, flags, name, words):
  if name == 'disk' and not pathlib.Path('/proc').is_dir():
    pytest.skip('needs a folder that nobody can write')
  code, rows = check(*flags)
  assert code == 2
  found = [detail for status, detail in rows[name] if status == 'problem']
  assert any(words in detail for detail in found), rows


def test_problems_of_different_parts_come_together(check):
  code, rows = check(
    '--config.data.path=nope.txt', '--config.mesh.data=3', '--devices=2',
    '--workdir=my.txt',
  )  # fmt: skip
  assert code == 2
  wrong = [k for k, v in rows.items() if v[0][0] == 'problem']
  assert wrong == ['text', 'devices', 'run directory']


def test_a_writer_that_is_not_installed(check, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  code, rows = check('--config.log.writers=wandb')
  assert code == 2 and 'craft-jax[wandb]' in rows['writers'][0][1]


def test_other_settings_than_those_of_the_run(check, byte_run):
  shutil.copytree(byte_run, 'run')
  pathlib.Path('run/config.json').write_text('{}')  # looks like a run's
  code, rows = check('--workdir=run')
  assert code == 2
  status, detail = rows['run directory'][0]
  assert status == 'problem'
  assert 'started with other settings' in detail and 'data.source' in detail


def test_a_file_that_does_not_run_is_one_line(tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text('def get_config(:')
  assert main.main(['config', 'check', f'--config={path}']) == 2
  out, err = capsys.readouterr()
  assert not out and 'invalid syntax' in err and err.count('\n') == 1


def test_the_disk_has_to_hold_the_checkpoints(tmp_path, monkeypatch):
  from craft_jax.config.load import Config

  free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
  monkeypatch.setenv('CRAFT_CACHE', str(tmp_path / 'cache'))
  run = str(tmp_path / 'run')
  assert 'need' in preflight._disk(Config(), run, 1e6)
  with pytest.raises(UserError, match='on another disk'):
    preflight._disk(Config(), run, float(free))
