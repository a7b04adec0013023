"""Runs in folders whose names some layer below could read as syntax."""

import json
import pathlib

import pytest

from craft_jax.main import main
from craft_jax.runs import checkpoint

# Many characters in a name: one that is read as syntax is enough to fail.
_NAMES = [
  '[2024-01-01] lr=[0.1,0.2] [!a]*b?{x} a~b~',
  """it's "quoted" $HOME `x` $(x) a#b?c=d&e """,
  'größe 大 \U0001f600 new\nline\ttab %s 50% %20',
  '-x a:b s3:', '.dot;b|c<d>!@,',
]  # fmt: skip


def _flags(text, cache):
  return [
    '--config=text', f'--config.data.path={text}',
    f'--config.data.cache_dir={cache}', '--config.model.context=16',
    '--config.model.width=16', '--config.model.depth=1',
    '--config.model.num_heads=2', '--config.model.precision=float32',
    '--config.train.steps=4', '--config.train.batch_size=8',
    '--config.train.steps_per_call=2', '--config.optim.warmup_steps=1',
    '--config.eval.batch_size=16', '--config.log.sample_chars=0',
  ]  # fmt: skip


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Corpora, prepared once."""
  return tmp_path_factory.mktemp('cache')


@pytest.mark.slow
@pytest.mark.parametrize('name', _NAMES)
def test_a_run_in_a_folder(tmp_path, text, cache, capsys, monkeypatch, name):
  """It trains, goes on, and every command that reads a run reads it."""
  # Relative, as a user gives it; the layers below are handed it absolute.
  monkeypatch.chdir(tmp_path)
  workdir = pathlib.Path(name) / 'run'
  folder, run = f'./{name}', f'./{workdir}'
  where = f'--workdir={workdir}'
  train = ['train', *_flags(text, cache), where, '--quiet']

  def craft(*command):
    assert main([*command]) == 0, (command, capsys.readouterr().err)
    said = capsys.readouterr()
    assert 'Traceback' not in said.err
    return said.out

  craft(*train, '--stop-at-step=2')
  assert checkpoint.find_damage(workdir, 2) == ''
  craft(*train)
  assert checkpoint.steps(workdir) == [2, 4]
  found = json.loads(craft('inspect', where, '--json').splitlines()[-1])
  assert found['step'] == 4
  craft('sample', where, '--prompt=1', '--max-chars=4', '--seed=0')
  craft('eval', where, '--step=2')
  craft('runs', 'show', run)
  assert 'finished' in craft('runs', 'list', folder)
  page = workdir.parent / 'report.html'
  craft('runs', 'report', folder, f'--output={page}')
  assert page.stat().st_size
  corpus = workdir.parent / 'corpus.txt'
  corpus.write_text('some text to read\n' * 9)
  craft(
    'data', 'stats', '--config=text',
    f'--config.data.path={corpus.absolute()}',
    f'--config.data.cache_dir={workdir.parent / "cache"}',
  )  # fmt: skip


def test_a_backslash_is_refused(tmp_path, text, cache, capsys, monkeypatch):
  """TensorStore would write beside it: refused before anything is made."""
  monkeypatch.chdir(tmp_path)
  flags = _flags(text, cache)
  assert main(['train', *flags, '--workdir=back\\slash/run', '--quiet']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'has a backslash in its name' in error
  assert list(tmp_path.iterdir()) == []
