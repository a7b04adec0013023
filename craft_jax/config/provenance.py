"""Runs a config file so that each value of a `ConfigDict` knows its line.

Each statement of the file runs inside `with _at(line)`, added to its syntax
tree, and an assignment records the line of that moment.
"""

import ast
import contextlib
import pathlib
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

from ml_collections.config_dict import ConfigDict

_NAME = '<config>'  # of the module that the file is while it runs
_now: tuple[str, int] | None = None  # file and line that run


@contextlib.contextmanager
def _at(place: tuple[str, int] | None) -> Iterator[None]:
  """While it is open, assignments belong to a file and line."""
  global _now
  before, _now = _now, place
  try:
    yield
  finally:
    _now = before


def _tell_lines(node: ast.AST, path: str) -> None:
  """Puts every statement below a node into `with _at((path, line)):`."""
  for name, value in ast.iter_fields(node):
    if not isinstance(value, list):
      continue
    for child in value:
      if isinstance(child, ast.AST):
        _tell_lines(child, path)
    if value and isinstance(value[0], ast.stmt):
      setattr(node, name, [_told(statement, path) for statement in value])


def _told(statement: ast.stmt, path: str) -> ast.stmt:
  match statement:
    case ast.Expr(value=ast.Constant()) | ast.ImportFrom(module='__future__'):
      return statement  # a docstring; both must come first
  (opened,) = ast.parse(f'with _at(({path!r}, {statement.lineno})): 0').body
  assert isinstance(opened, ast.With)
  for node in ast.walk(opened):
    ast.copy_location(node, statement)
  opened.body = [statement]
  return opened


def run_file(path: pathlib.Path, data: bytes) -> dict[str, Any]:
  """Runs Python and returns its names; writes no `__pycache__`.

  Args:
    path: name of the file in error messages and in `lines_in`.
    data: source code.
  """
  tree = ast.parse(data, str(path))
  _tell_lines(tree, str(path))
  module = types.ModuleType(_NAME)
  module.__dict__.update(__file__=str(path), _at=_at)
  sys.modules[_NAME] = module  # where dataclasses look for annotations
  exec(compile(tree, str(path), 'exec'), module.__dict__)
  return module.__dict__


class _Fields(dict):
  """Storage of a `ConfigDict` that records where its values were set.

  A copy or a pickle of it is a plain `dict`.

  Attributes:
    prefix: prefix of the dotted names, such as `model.`.
    places: file and line of the last assignment, by key.
  """

  def __init__(self, values: dict[str, Any], prefix: str):
    super().__init__(values)
    self.prefix = prefix
    self.places: dict[str, tuple[str, int] | None] = {}

  def __setitem__(self, key: Any, value: Any) -> None:
    super().__setitem__(key, value)
    self.places[key] = _now
    if isinstance(value, ConfigDict) and not isinstance(value._fields, _Fields):
      note(value, f'{self.prefix}{key}.')

  def __reduce__(self) -> Any:
    return dict, (dict(self),)


def note(config: ConfigDict, prefix: str = '') -> ConfigDict:
  """Makes a config record its assignments from now on; returns it."""
  # Replacing the storage keeps the class, so that assignment, copies and
  # comparison work as with any `ConfigDict`.
  object.__setattr__(config, '_fields', _Fields(config._fields, prefix))
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      note(value, f'{prefix}{key}.')
  return config


def lines_in(path: str, config: Any) -> dict[str, int]:
  """Line of a file that last set each value, by dotted name.

  Values that the file did not set are left out. If the file calls a function
  that sets values, it is the line of the call.
  """
  found: dict[str, int] = {}
  places = getattr(getattr(config, '_fields', None), 'places', {})
  for key, value in config.items():
    file, line = places.get(key) or ('', 0)
    if isinstance(value, ConfigDict):
      # Assigning a section sets all its values, until one is set again.
      if file == path:
        found |= {f'{key}.{k}': line for k in value}
      found |= {f'{key}.{k}': v for k, v in lines_in(path, value).items()}
    elif file == path:
      found[key] = line
  return found


def unknown_key(error: BaseException) -> str | None:
  """Dotted name whose lookup in a recording config raised the error.

  None for any other error, including those of the user's own objects.
  """
  if not isinstance(error, (AttributeError, KeyError)):
    return None
  *_, (frame, _) = traceback.walk_tb(error.__traceback__)
  names = frame.f_locals
  config = names.get('self')
  fields = getattr(config, '_fields', None)
  if not isinstance(config, ConfigDict) or not isinstance(fields, _Fields):
    return None
  key = names.get('attribute', names.get('key'))
  return None if key in fields else f'{fields.prefix}{key}'
