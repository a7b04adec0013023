"""The house as docs/development.md draws it, enforced from the imports."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

_ROOT = pathlib.Path(__file__).parents[1] / 'craft_jax'

# The longest matching name decides. A module imports from strictly lower
# layers, or from its own package at its own layer or below.
_LAYERS = {
  '': 0,  # craft_jax itself: the version, and a door (see below)
  'errors': 0,
  'terminal': 0,
  'strict_json': -1,
  'extras': 0,
  'stores': 0,
  'files': 0,
  'settings': 0,
  'noted': 0,
  'config': 0,
  'sizes': 0,
  'interrupts': 0,
  'jax_settings': 0,
  'types': 0,
  'describe': 1,
  'shipped': 1,
  'meaning': 2,
  'compile_cache': 1,
  'keys': 1,
  'xla_flags': 1,
  'room': 1,
  'scaling_law': 1,
  'text': 1,
  'sharding': 1,
  'model': 2,
  'data': 2,
  'optim': 2,
  'losses': 2,
  'metrics': 2,
  'checkpoint': 2,
  'constrain': 2,
  'heat': 2,
  'ngram_cache': 2,
  'track': 2,
  'sweep': 3,
  'train.state': 3,
  'train.step': 3,
  'trained': 3,
  'score': 3,
  'dynamic': 3,
  'evaluate': 4,
  'sample': 4,
  'plan': 4,
  'compress': 5,
  'engine': 5,
  'surprisal': 5,
  'preflight': 6,
  'train': 5,
  'language_model': 6,
  'serve.errors': 1,
  'serve.limits': 1,
  'serve': 6,
  'cli': 7,
  'main': 8,  # alone above cli, which it imports
}
# Layer 0 is plain modules that build on each other in this order.
_GROUND = (
  '', 'errors', 'extras', 'stores', 'files', 'interrupts', 'types', 'settings',
  'noted', 'config', 'sizes', 'jax_settings',
)  # fmt: skip
# `craft_jax.load`, imported when it is asked for: the one way up.
_DOOR = ('', 'language_model')
_PURE = ('model', 'optim', 'losses', 'metrics', 'train.state', 'train.step')
_IO = {'os', 'io', 'pathlib', 'shutil', 'json', 'urllib', 'etils', 'orbax'}
_ARRAYS = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain'}

_FILES = sorted(_ROOT.rglob('*.py'))


def _name(path: pathlib.Path) -> str:
  """`train.loop` of `craft_jax/train/loop.py`."""
  parts = path.relative_to(_ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


_NAMES = {_name(path) for path in _FILES}


def _key(name: str) -> str:
  """The entry of the table that decides for a module."""
  while name not in _LAYERS and '.' in name:
    name = name.rpartition('.')[0]
  return name


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


def _allowed(source: str, target: str) -> bool:
  if (source, target) == _DOOR:
    return True
  a, b = _key(source), _key(target)
  if a in _GROUND and b in _GROUND:
    return _GROUND.index(b) <= _GROUND.index(a)
  same = source.partition('.')[0] == target.partition('.')[0]
  return _LAYERS[b] < _LAYERS[a] or (same and _LAYERS[b] <= _LAYERS[a])


@pytest.mark.parametrize('path', _FILES, ids=_name)
def test_imports_go_down(path):
  source = _name(path)
  assert _key(source) in _LAYERS, f'give {source} a layer in _LAYERS'
  tree = ast.parse(path.read_text(encoding='utf-8'))
  wrong = [
    target
    for module in _imports(tree)
    if (target := _inner(module)) is not None and not _allowed(source, target)
  ]
  assert not wrong, f'{source} (layer {_LAYERS[_key(source)]}) imports {wrong}'


@pytest.mark.parametrize('path', _FILES, ids=_name)
def test_bans(path):
  name, tree = _name(path), ast.parse(path.read_text(encoding='utf-8'))
  roots = {module.partition('.')[0] for module in _imports(tree)}
  top = set().union(
    *(set(_imports(n)) for n in tree.body if not isinstance(n, ast.FunctionDef))
  )
  package = name.partition('.')[0]
  assert not {'utils', 'util', 'common', 'helpers'} & set(name.split('.'))
  if package in ('text', 'constrain') or name == 'engine.scheduler':
    assert not roots & _ARRAYS, f'{name} works without arrays on devices'
  if 'tensorflow_datasets' in roots:
    assert name == 'data.sources', 'TFDS is read in one place'
    assert 'tensorflow_datasets' not in top, 'import TFDS in the function'
  if 'ml_collections' in roots:
    assert name in ('config', 'noted', 'sizes') or package == 'cli', (
      'pass a frozen Config instead'
    )
  if name.startswith(_PURE):
    assert not roots & _IO, 'pure modules do no input or output'


def test_the_guard_can_fail():
  assert not _allowed('model.layers', 'data.batch')
  assert not _allowed('train.step', 'train.loop')
  assert not _allowed('settings', 'config')
  assert not _allowed('text.vocabulary', 'sharding.mesh')
  assert _allowed('train.loop', 'train.step')
  assert _allowed('main', 'cli.train')
