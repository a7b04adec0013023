"""`craft profile`: what it prints, what it refuses."""

import json
import pathlib
import subprocess
import sys

import pytest

from craft_jax.main import main

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_profiles_the_toy(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'craft_jax.main', 'profile', '--config=toy'),
      *('--steps=2', '--top=5', '--json', f'--output={tmp_path / "trace"}'),
      *('--config.model.depth=1', '--config.mesh.cpu_devices=2'),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  values = json.loads(lines[-1])
  assert (values['steps'], values['devices'], values['lost']) == (2, 2, 0)
  assert len(values['rows']) == 5
  assert sum(values['kinds'].values()) == pytest.approx(values['step_seconds'])
  assert lines[0].startswith('devices  2 x cpu, mesh 2 x 1 x 1, ')
  assert lines[-2] == f'verdict  {values["verdict"]}'
  kept = sorted(path.name for path in tmp_path.rglob('*.*') if path.is_file())
  assert [name.partition('.')[2] for name in kept] == [
    'txt', 'trace.json.gz', 'xplane.pb',
  ]  # fmt: skip


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--steps=0'], '--steps must be at least 1'),
    (['--top=0'], '--top must be at least 1'),
    (['--steps=a'], 'invalid int value'),
    (['--outptu=x'], "did you mean '--output'"),
    (['--config.model.widht=3'], "did you mean 'model.width'"),
  ],
)
def test_mistakes(argv, words, capsys):
  assert main(['profile', *argv]) == 2
  out, err = capsys.readouterr()
  assert words in err and err.count('\n') == 1 and not out


def test_nothing_is_overwritten(tmp_path, capsys):
  (tmp_path / 'mine').touch()
  for path in (tmp_path, tmp_path / 'mine'):
    assert main(['profile', '--config=toy', f'--output={path}']) == 2
    assert 'give another --output' in capsys.readouterr().err


@pytest.mark.slow
def test_of_a_run_it_is_kept_with_the_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'my.txt').write_text('to be or not to be; ' * 500)
  train = ['train', '--config=text', '--workdir=runs/a', '--quiet']
  train += ['--config.data.path=my.txt', '--config.train.steps=2']
  train += ['--config.model.depth=1', '--config.optim.warmup_steps=1']
  assert main(train) == 0
  capsys.readouterr()
  assert main(['profile', '--workdir=runs/a', '--steps=2', '--json']) == 0
  values = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert values['steps'] == 2
  (folder,) = (tmp_path / 'runs/a/profiles').iterdir()
  assert (folder / 'program.txt').read_text()


def test_a_run_and_a_config_are_not_mixed(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for argv, words in (
    (['--config=toy'], 'remove --config'),
    (['--config.seed=3'], 'remove --config'),
    ([], 'runs/a is not a run directory'),
  ):
    assert main(['profile', '--workdir=runs/a', *argv]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count('\n') == 1 and not out
  assert not list(tmp_path.iterdir())
