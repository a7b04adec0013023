"""Filters of runs: `model.width>=256 and status==finished`."""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from craft_jax.errors import UserError, hint
from craft_jax.runs.layout import STATUSES

_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
  ast.Eq: operator.eq,
  ast.NotEq: operator.ne,
  ast.Lt: operator.lt,
  ast.LtE: operator.le,
  ast.Gt: operator.gt,
  ast.GtE: operator.ge,
  ast.In: lambda a, b: a in b,
  ast.NotIn: lambda a, b: a not in b,
}
_EXAMPLE = "such as 'model.width>=256 and status==finished'"
Facts = Mapping[str, Any]


def parse(text: str, known: set[str]) -> Callable[[Facts], bool]:
  """A test of the facts of a run.

  Comparisons (`== != < <= > >= in`, chained too) of names with numbers,
  quoted texts or bare words, joined by `and`, `or`, `not` and brackets. A
  comparison with something that a run does not tell is false.

  Args:
    text: the filter.
    known: names that may be compared. Any other word stands for itself, but
      not on the left.

  Raises:
    UserError: not a filter, or an unknown name.
  """
  # Settings are bool, and people write them as flags have them.
  try:
    tree = ast.parse(text.strip(), mode='eval').body
  except SyntaxError as e:
    raise UserError(f'the filter {text!r} cannot be read; {_EXAMPLE}') from e
  test = _test(tree, text, known)
  return lambda facts: bool(test(facts))


def _test(node: ast.AST, text: str, known: set[str]) -> Callable[[Facts], Any]:
  if isinstance(node, ast.BoolOp):
    parts = [_test(value, text, known) for value in node.values]
    join = all if isinstance(node.op, ast.And) else any
    return lambda facts: join(part(facts) for part in parts)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
    part = _test(node.operand, text, known)
    return lambda facts: not part(facts)
  if isinstance(node, ast.Compare):
    return _comparison(node, text, known)
  value = _value(node, text, known)
  if isinstance(node, ast.Name | ast.Attribute):
    _check_known(node, known)
    return value
  raise UserError(
    f'{ast.unparse(node)!r} in the filter is no comparison; write one '
    f'{_EXAMPLE}'
  )


def _comparison(
  node: ast.Compare, text: str, known: set[str]
) -> Callable[[Facts], bool]:
  sides = [node.left, *node.comparators]
  if isinstance(node.left, ast.Name | ast.Attribute):
    _check_known(node.left, known)
    if ast.unparse(node.left) == 'status':
      _check_status(node.comparators)
  values = [_value(side, text, known) for side in sides]
  compares = [_COMPARE.get(type(op)) for op in node.ops]
  if None in compares:
    raise UserError(f'the filter {text!r} compares with `is`; use ==')

  def holds(facts: Facts) -> bool:
    found = [value(facts) for value in values]
    for compare, a, b in zip(compares, found, found[1:], strict=False):
      if a is None or b is None:
        return False
      try:
        if not compare(a, b):  # type: ignore[misc]
          return False
      except TypeError:  # a number and a text
        return False
    return True

  return holds


def _value(node: ast.AST, text: str, known: set[str]) -> Callable[[Facts], Any]:
  if isinstance(node, ast.Constant):
    return lambda facts: node.value
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    inner = _value(node.operand, text, known)
    return lambda facts: -inner(facts)
  if isinstance(node, ast.Tuple | ast.List):
    parts = [_value(item, text, known) for item in node.elts]
    return lambda facts: [part(facts) for part in parts]
  if isinstance(node, ast.Name | ast.Attribute):
    name = ast.unparse(node)
    if name in known:
      return lambda facts: facts.get(name)
    word = {'true': True, 'false': False}.get(name, name)
    return lambda facts: word
  raise UserError(
    f'{ast.unparse(node)!r} in the filter is neither a name nor a value; put '
    'a text into quotes'
  )


def _check_status(sides: Sequence[ast.AST]) -> None:
  """A state that is misspelt would only ever give an empty list."""
  for side in sides:
    for node in getattr(side, 'elts', [side]):
      word = node.value if isinstance(node, ast.Constant) else ast.unparse(node)
      if word not in STATUSES:
        raise UserError(
          f'no run is ever {word!r}{hint(str(word), STATUSES)}; status is one '
          f'of {", ".join(STATUSES)}'
        )


def _check_known(node: ast.AST, known: set[str]) -> None:
  name = ast.unparse(node)
  if name not in known:
    raise UserError(
      f'runs have no {name!r}{hint(name, known)}; craft runs list --keys shows '
      'what they have'
    )
