"""docs/reliability.md names tests that exist, and leaves none of them out."""

import ast
import pathlib
import re

import pytest

_TESTS = pathlib.Path(__file__).parent
_PAGE = _TESTS.parent / 'docs' / 'reliability.md'
_NAMED = re.findall(r'`([\w/]+\.py)::(\w+)`', _PAGE.read_text('utf-8'))


def _tests_in(path):
  tree = ast.parse((_TESTS / path).read_text('utf-8'))
  return {
    node.name
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')
  }


def test_the_page_names_tests():
  assert len(_NAMED) > 30


@pytest.mark.parametrize('path, name', _NAMED, ids=lambda value: str(value))
def test_named_tests_exist(path, name):
  assert name in _tests_in(path)


def test_every_row_has_a_test():
  rows = re.findall(r'^\| (?!promise|---)(.*) \|$', _PROMISES, re.MULTILINE)
  assert len(rows) > 30
  assert not [row for row in rows if '::' not in row]


_PROMISES = _PAGE.read_text('utf-8').partition('## Exit codes')[0]


@pytest.mark.parametrize(
  'path',
  sorted((_TESTS / 'reliability').glob('test_*.py')),
  ids=lambda path: path.name,
)
def test_no_fault_test_is_left_out(path):
  name = str(path.relative_to(_TESTS))
  missing = _tests_in(name) - {n for p, n in _NAMED if p == name}
  assert missing <= {'test_lock_leaves_no_folder_behind'}
