"""docs/serving.md: tables of what there is, threats with tests that exist."""

import ast
import pathlib
import re

import pytest

from craft_jax.inference.load import load_model
from craft_jax.serve import app, reference
from craft_jax.serve.admission import Limits
from craft_jax.serve.logs import Log
from craft_jax.serve.schemas import CompletionBody
from craft_jax.serve.service import Model, Service

_TESTS = pathlib.Path(__file__).parents[1]
_TEXT = (_TESTS.parent / 'docs' / 'serving.md').read_text('utf-8')
_NAMED = re.findall(r'`([\w/]+\.py)::(\w+)`', _TEXT)


def _rows(heading: str) -> list[list[str]]:
  """Cells of the first table below a heading."""
  text = _TEXT.partition(f'{heading}\n')[2]
  found = re.search(r'^\|---.*\n((?:\|.*\n)+)', text, re.MULTILINE)
  lines = found[1].splitlines()
  return [line.strip('| ').split(' | ') for line in lines]


def test_tables_are_fresh():
  assert reference.refreshed(_TEXT) == _TEXT, (
    'stale; refresh it: python -m craft_jax.serve.reference docs/serving.md'
  )


def test_the_tables_have_all_there_is():
  fields = reference.fields(CompletionBody)
  assert fields.count('\n') == len(CompletionBody.model_fields) + 1
  assert '| `temperature` | number 0 to 100 | `1.0` |' in fields
  assert '| `text` | string, list of string | needed |' in _TEXT
  assert '1,048,576 bytes' in reference.limits()
  stale = _TEXT.replace('characters to write', 'tokens to write')
  assert stale != _TEXT and reference.refreshed(stale) == _TEXT


def test_every_path_is_named(byte_run):
  trained = load_model(byte_run, 'latest', True)
  service = Service(Model.of(trained), 'm', 1, Limits(), Log())
  paths = {route.path for route in app.build(service, Log(), True).routes}
  named = set(
    re.findall(r'(/[\w./{}]*)', ' '.join(r[0] for r in _rows('## Paths')))
  )
  assert paths - {'/page.js', '/page.css'} == named


def test_every_threat_has_a_control_and_a_test():
  rows = _rows('### Threats')
  assert len(rows) > 15
  for threat, control, tests in rows:
    assert threat and control and '::' in tests


@pytest.mark.parametrize('path, name', _NAMED, ids=str)
def test_named_tests_exist(path, name):
  tree = ast.parse((_TESTS / path).read_text('utf-8'))
  assert name in {
    node.name for node in tree.body if isinstance(node, ast.FunctionDef)
  }
