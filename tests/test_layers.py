"""The house as docs/development.md draws it, read off the folders and imports.

Nothing here lists modules: a package is a folder, a floor follows from what it
imports.
"""

import ast
import functools
import graphlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

_ROOT = pathlib.Path(__file__).parents[1] / 'craft_jax'
_MOST_PACKAGES = 10
_MOST_FLOORS = 8
_MOST_OF_THE_LOOP = 60  # modules that importing it loads
_LOOSE = {'', 'errors', 'main', 'types'}  # modules beside the packages
# What users import; nothing inside the package does.
_DOOR = ''
# From the lowest floor to the highest, as docs/development.md draws them.
_FLOORS = (
  {'errors', 'types'},
  {'config', 'runtime'},
  {'data', 'model'},
  {'constrain', 'runs'},
  {'inference'},
  {'serve', 'train'},
  {'cli'},
  {'main'},
)
_NO_ARRAYS = ('data.text', 'constrain', 'inference.engine.scheduler')
_PURE = (
  'model', 'train.optim', 'inference.metrics', 'train.dispatch', 'train.state',
  'train.step',
)  # fmt: skip
# The devices of a run are handed in: what is compiled depends on them alone.
_HANDED_DEVICES = ('model.', 'train.step.', 'inference.sampling.')
_IO = {'os', 'io', 'pathlib', 'shutil', 'json', 'urllib', 'etils', 'orbax'}
_ARRAYS = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain'}
_FILES = sorted(_ROOT.rglob('*.py'))


def _name(path: pathlib.Path) -> str:
  """`train.loop` of `craft_jax/train/loop.py`."""
  parts = path.relative_to(_ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


_NAMES = {_name(path) for path in _FILES}


def _imports(tree: ast.AST) -> Iterator[str]:
  """Every absolute module name that is imported, in functions too."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute'
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        inner = full.removeprefix('craft_jax.')
        yield full if inner in _NAMES else node.module or ''


def _inner(module: str) -> str | None:
  """`train.loop` of `craft_jax.train.loop`, None of anything foreign."""
  if module.partition('.')[0] != 'craft_jax':
    return None
  return module.removeprefix('craft_jax').removeprefix('.')


@functools.cache
def _modules() -> dict[str, set[str]]:
  """The modules of the package that each module imports."""
  found = {}
  for path in _FILES:
    tree = ast.parse(path.read_text(encoding='utf-8'))
    inner = {_inner(module) for module in _imports(tree)}
    found[_name(path)] = {name for name in inner if name is not None}
  return found


def _packages(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
  """The packages and loose modules that each of them imports."""
  found: dict[str, set[str]] = {}
  for source, targets in modules.items():
    if source != _DOOR:
      top = source.partition('.')[0]
      tops = {target.partition('.')[0] for target in targets}
      found.setdefault(top, set()).update(tops - {top})
  return found


def _floors(packages: Mapping[str, set[str]]) -> list[set[str]]:
  """Each on the lowest floor above all that it imports.

  Raises:
    graphlib.CycleError: packages import each other.
  """
  floor: dict[str, int] = {}
  for name in graphlib.TopologicalSorter(packages).static_order():
    floor[name] = 1 + max((floor[n] for n in packages[name]), default=-1)
  return [
    {name for name in floor if floor[name] == i}
    for i in range(1 + max(floor.values()))
  ]


def test_packages_stand_on_floors():
  packages = _packages(_modules())
  folders = {path.parent.name for path in _ROOT.glob('*/*.py')}
  assert len(folders) <= _MOST_PACKAGES
  assert packages.keys() == folders | _LOOSE - {_DOOR}, 'a loose module'
  floors = _floors(packages)
  assert len(floors) <= _MOST_FLOORS
  assert floors == list(_FLOORS)


def test_modules_have_no_cycle():
  modules = {
    # A package imports its modules to show their names; they do not need it.
    source: {t for t in targets if not source.startswith(f'{t}.')}
    for source, targets in _modules().items()
    if source != _DOOR
  }
  graphlib.TopologicalSorter(modules).prepare()


def test_the_training_loop_stands_on_little():
  """It is handed what it evaluates and samples with, and plans nothing."""
  code = 'import sys, craft_jax.train.loop; print(*sys.modules)'
  told = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  loaded = [name for name in told.stdout.split() if _inner(name) is not None]
  assert 'craft_jax.train.loop' in loaded
  assert len(loaded) <= _MOST_OF_THE_LOOP
  beyond = (
    'constrain', 'inference.engine', 'inference.sampling', 'runs.report',
    'train.plan', 'train.preflight', 'train.profile',
  )  # fmt: skip
  assert not [name for name in loaded if _inner(name).startswith(beyond)]


def test_nothing_inside_uses_the_door():
  assert not [name for name, found in _modules().items() if _DOOR in found]


@pytest.mark.parametrize('path', _FILES, ids=_name)
def test_bans(path):
  name, tree = _name(path), ast.parse(path.read_text(encoding='utf-8'))
  roots = {module.partition('.')[0] for module in _imports(tree)}
  top = set().union(
    *(set(_imports(n)) for n in tree.body if not isinstance(n, ast.FunctionDef))
  )
  assert not {'utils', 'util', 'common', 'helpers'} & set(name.split('.'))
  if name.startswith(_NO_ARRAYS):
    assert not roots & _ARRAYS, f'{name} works without arrays on devices'
  if 'tensorflow_datasets' in roots:
    assert name == 'data.sources', 'TFDS is read in one place'
    assert 'tensorflow_datasets' not in top, 'import TFDS in the function'
  if 'ml_collections' in roots:
    assert name.startswith(('config.', 'cli.')), 'pass a frozen Config instead'
  used = {
    ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)
  }
  if f'{name}.'.startswith(_HANDED_DEVICES):
    asked = used & {'jax.default_backend', 'jax.devices'}
    assert not asked, 'ask the policy of the model'
  if not name.startswith('model'):
    assert 'craft_jax.model.transformer' not in set(_imports(tree)), (
      'a model is a protocol; its class is known to `model.build` alone'
    )
  if name.startswith(_PURE) and not name.startswith('model.sharding'):
    assert not roots & _IO, 'pure modules do no input or output'


def test_the_guard_can_fail():
  low, high = {'low.a': set(), 'high.b': {'low.a'}}, {'low.c': {'high.b'}}
  assert _floors(_packages(low)) == [{'low'}, {'high'}]
  with pytest.raises(graphlib.CycleError):
    _floors(_packages(low | high))
