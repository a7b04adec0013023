"""What is installed and how: lists that must agree with the disk."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import craft_jax
from craft_jax.config import load as config_lib

_ROOT = pathlib.Path(__file__).parents[1]
_PYPROJECT = tomllib.loads((_ROOT / 'pyproject.toml').read_text())
_PROJECT = _PYPROJECT['project']


def _normal(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()


def _required(lines: list[str]) -> set[str]:
  return {_normal(re.split(r'[\[<>=;\s]', line)[0]) for line in lines}


def test_every_package_is_listed():
  folders = {
    path.parent.relative_to(_ROOT).as_posix().replace('/', '.')
    for path in (_ROOT / 'craft_jax').rglob('*.py')
  }
  listed = _PYPROJECT['tool']['setuptools']['packages']
  assert set(listed) == folders | {'craft_jax.configs'}
  assert listed == sorted(listed)


def test_the_licence_is_whole():
  text = (_ROOT / 'LICENSE').read_text()
  assert 'Apache License' in text and 'END OF TERMS AND CONDITIONS' in text
  assert _PROJECT['license'] == 'Apache-2.0'


def test_constraints_pin_every_dependency():
  pins = set()
  for line in (_ROOT / 'constraints.txt').read_text().splitlines():
    if line and not line.startswith('#'):
      assert re.fullmatch(r'[\w.-]+==[\w.]+( ; python_version .*)?', line), line
      pins.add(_normal(line.partition('==')[0]))
  extras = _PROJECT['optional-dependencies']
  wanted = _required(_PROJECT['dependencies'])
  for name in ('tfds', 'tests', 'dev', 'bench'):
    wanted |= _required(extras[name])
  assert wanted - pins == {'craft-jax'}


def test_lowest_versions_are_exact():
  done = subprocess.run(
    [sys.executable, str(_ROOT / 'launch' / 'lowest.py')],
    capture_output=True,
    text=True,
    check=True,
  )
  lines = done.stdout.splitlines()
  assert {'jax==0.10.1', 'pydantic==2.10'} <= set(lines)
  assert all(re.fullmatch(r'[\w-]+==[\w.]+', line) for line in lines)


def test_config_dir_of_a_checkout():
  assert config_lib.config_dir() == _ROOT / 'configs'
  assert pathlib.Path(craft_jax.__file__).parent == _ROOT / 'craft_jax'


@pytest.mark.parametrize(
  'script', ['launch/quickstart.sh', 'launch/test.sh', '.ci/run']
)
def test_scripts_are_runnable(script):
  path = _ROOT / script
  assert path.stat().st_mode & 0o111
  subprocess.run(['bash', '-n', str(path)], check=True)


def _bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    ['/bin/bash', '-c', f'source {_ROOT}/launch/environment.sh; {script}'],
    env=env,
    capture_output=True,
    text=True,
  )


def _interpreter(path: pathlib.Path, body: str) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\n{body}\n')
  path.chmod(0o755)
  return str(path)


def test_broken_shims_are_passed_over(tmp_path):
  """As pyenv leaves them: there, executable, and failing."""
  shims, real = tmp_path / 'shims', tmp_path / 'versions' / '9' / 'bin'
  _interpreter(shims / 'python3.11', 'echo "command not found" >&2; exit 127')
  good = _interpreter(real / 'python3.12', f'exec "{sys.executable}" "$@"')
  env = {'PATH': str(shims), 'PYENV_ROOT': str(tmp_path), 'HOME': '/nowhere'}
  assert _bash('list_pythons', **env).stdout.splitlines() == [good]
  assert _bash('choose_python', **env).stdout == f'{good}\n'


def test_no_python_is_one_line(tmp_path):
  env = {'PATH': str(tmp_path), 'HOME': str(tmp_path)}
  done = _bash('choose_python', **env)
  assert done.returncode == 1 and not done.stdout
  assert 'no Python 3.11' in done.stderr and done.stderr.count('\n') == 1


def test_old_or_missing_python_is_one_line(tmp_path):
  old = _interpreter(tmp_path / 'python', 'exit 1')
  done = _bash('choose_python', PATH='/bin:/usr/bin', PYTHON=old)
  assert done.returncode == 1 and done.stderr.count('\n') == 1
  assert old in done.stderr


def test_python_without_venv_is_named(tmp_path):
  body = f'case "$2" in *venv*) exit 1;; esac; exec "{sys.executable}" "$@"'
  bare = _interpreter(tmp_path / 'python3.11', body)
  done = _bash('choose_python', PATH=f'{tmp_path}', HOME='/nowhere')
  assert done.returncode == 1
  assert bare in done.stderr and 'venv' in done.stderr
