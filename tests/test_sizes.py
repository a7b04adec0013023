"""Size is a smell: past the mark, a file or a function states its reason."""

import ast
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_FILE_LINES, _FUNCTION_LINES = 400, 60

# `path` or `path:function` -> why it is better whole.
_REASONS = {
  'craft_jax/config.py': (
    'loading, overriding and the checks between settings: one job, many rules'
  ),
  'craft_jax/settings.py': 'every setting, once, in one list',
}


def _too_long(text: str, name: str) -> dict[str, int]:
  """Lines of each file and function that is over its mark."""
  found = {}
  if (lines := text.count('\n')) > _FILE_LINES:
    found[name] = lines
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = (node.end_lineno or 0) - node.lineno + 1
      if lines > _FUNCTION_LINES:
        found[f'{name}:{node.name}'] = lines
  return found


def _sizes() -> dict[str, int]:
  found = {}
  for folder in ('craft_jax', 'configs', 'launch', 'benchmarks', 'docs'):
    for path in sorted((_ROOT / folder).rglob('*.py')):
      name = path.relative_to(_ROOT).as_posix()
      found |= _too_long(path.read_text(encoding='utf-8'), name)
  return found


def test_long_ones_have_a_reason():
  missing = {k: v for k, v in _sizes().items() if k not in _REASONS}
  assert not missing, f'split them, or give a reason in _REASONS: {missing}'


def test_no_reason_outlives_its_need():
  assert not set(_REASONS) - set(_sizes())


@pytest.mark.parametrize(
  'text, names',
  [
    ('x = 1\n' * 400, []),
    ('x = 1\n' * 401, ['f.py']),
    ('def g():\n' + '  x = 1\n' * 59, []),
    ('def g():\n' + '  x = 1\n' * 60, ['f.py:g']),
  ],
)
def test_the_marks(text, names):
  assert list(_too_long(text, 'f.py')) == names
