"""The wheel, installed outside the checkout, does the whole job."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_PARTS = ('craft_jax', 'configs', 'pyproject.toml', 'setup.cfg', 'README.md',
          'LICENSE')  # fmt: skip

pytestmark = pytest.mark.slow


def _run(*command: object, cwd: pathlib.Path) -> str:
  """Standard output of a command that must succeed."""
  env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
  done = subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
  )
  assert done.returncode == 0, f'{command}\n{done.stdout}\n{done.stderr}'
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
  """Built from a copy, so that the checkout stays clean."""
  source = tmp_path_factory.mktemp('source')
  skip = shutil.ignore_patterns('__pycache__')
  for name in _PARTS:
    if (_ROOT / name).is_dir():
      shutil.copytree(_ROOT / name, source / name, ignore=skip)
    else:
      shutil.copy(_ROOT / name, source / name)
  flags = ('--no-deps', '--no-build-isolation', '--wheel-dir', 'dist')
  pip = (sys.executable, '-m', 'pip', '--disable-pip-version-check')
  _run(*pip, 'wheel', '--quiet', *flags, '.', cwd=source)
  (built,) = (source / 'dist').glob('*.whl')
  return built


@pytest.fixture(scope='module')
def home(wheel, tmp_path_factory) -> pathlib.Path:
  """A fresh environment with the wheel; dependencies are shared by path.

  A path in a .pth file is searched, but its own .pth files are not read: an
  editable install of the checkout beside those dependencies stays unseen.
  """
  home = tmp_path_factory.mktemp('home')
  venv.create(home / 'env', with_pip=False, symlinks=True)
  python = home / 'env' / 'bin' / 'python'
  pip = (sys.executable, '-m', 'pip', '--disable-pip-version-check')
  flags = ('--quiet', '--no-deps', '--no-index')
  _run(*pip, '--python', python, 'install', *flags, wheel, cwd=home)
  where = 'import sysconfig; print(sysconfig.get_path("purelib"))'
  site = pathlib.Path(_run(python, '-c', where, cwd=home).strip())
  paths = {sysconfig.get_path(name) for name in ('purelib', 'platlib')}
  (site / 'dependencies.pth').write_text('\n'.join(sorted(paths)) + '\n')
  return home


def _craft(home: pathlib.Path, *flags: str) -> str:
  return _run(home / 'env' / 'bin' / 'craft', *flags, cwd=home)


def test_contents(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  configs = {f'craft_jax/configs/{p.name}' for p in _ROOT.glob('configs/*.py')}
  modules = {
    p.relative_to(_ROOT).as_posix() for p in _ROOT.glob('craft_jax/**/*.py')
  }
  page = {
    p.relative_to(_ROOT).as_posix() for p in _ROOT.glob('craft_jax/*/page/*')
  }
  assert configs and page
  assert names >= configs | modules | page | {'craft_jax/py.typed'}
  rest = {name for name in names if not name.startswith('craft_jax/')}
  assert all('.dist-info/' in name for name in rest)
  assert any(name.endswith('/LICENSE') for name in rest)


def test_finds_its_configs_and_not_the_checkout(home):
  code = (
    'from craft_jax.config import load; d = load.config_dir(); '
    'print(d, len(list(d.glob("*.py"))))'
  )
  folder, count = _run(
    home / 'env' / 'bin' / 'python', '-c', code, cwd=home
  ).split()
  assert pathlib.Path(folder).is_relative_to(home)
  assert int(count) == len(list(_ROOT.glob('configs/*.py')))


def test_help_and_version(home):
  assert 'craft train' in _craft(home, '--help')
  assert _craft(home, '--version').startswith('craft ')
  assert 'model.width' in _craft(home, 'config', 'show', '--config=base')


def test_trains_evaluates_and_samples(home):
  train = ('--config=toy', '--workdir=run', '--config.train.steps=20')
  result = json.loads(_craft(home, *train, '--json').splitlines()[-1])
  assert result['step'] == 20 and 0 < result['val_loss'] < 6
  scores = json.loads(
    _craft(home, 'eval', '--workdir=run', '--json').splitlines()[-1]
  )
  assert scores['val_loss'] == pytest.approx(result['val_loss'], rel=1e-5)
  text = _craft(
    home, 'sample', '--workdir=run', '--prompt=def ', '--max-chars=20'
  )
  assert 'def ' in text and len(text) > 4
