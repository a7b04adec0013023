"""Checks that the options of `oneOf` are disjoint.

Schemas are disjoint if their types or their listed values are, or if both
require a property whose schemas are disjoint (a tag).
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from craft_jax.constrain.budget import Budget
from craft_jax.constrain.document import (
  JSON_TYPES,
  fail,
  has_type,
  resolve,
  types_of,
)

_MAX_LEVELS = 8  # depth to which references and properties are followed
_PAIR_WORK = 80  # operations per pair of schemas


def check_disjoint(
  options: Sequence[Any], document: Any, where: str, budget: Budget
) -> None:
  """Checks that no value can be an instance of two of the schemas.

  Args:
    options: valid schemas.
    document: the document that contains them, to resolve references.
    where: JSON pointer to the options, for the error message.
    budget: budget of the compilation.

  Raises:
    UserError: two schemas are not known to be disjoint.
  """
  for (i, a), (j, b) in itertools.combinations(enumerate(options), 2):
    if not _disjoint(a, b, document, budget, _MAX_LEVELS):
      what = f'options {i} and {j} are not known to be disjoint'
      remedy = 'use anyOf, or require a property with a const that differs'
      fail(where, what, remedy)


def _disjoint(
  a: Any, b: Any, document: Any, budget: Budget, levels: int
) -> bool:
  budget.spend(_PAIR_WORK)
  if not levels:
    return False
  for one, other in ((a, b), (b, a)):
    if isinstance(one, dict) and '$ref' in one:
      target = resolve(document, one['$ref'], '$ref')
      return _disjoint(target, other, document, budget, levels - 1)
  if a is False or b is False:
    return True
  if a is True or b is True:
    return False
  kinds_a, kinds_b = _kinds(a), _kinds(b)
  if not kinds_a & kinds_b:
    return True
  values_a, values_b = _values(a), _values(b)
  if values_a is not None and values_b is not None:
    budget.spend(len(values_a) + len(values_b))
    return not values_a & values_b
  if kinds_a | kinds_b != {'object'}:
    return False
  shared = set(a.get('required', ())) & set(b.get('required', ()))
  return any(
    _disjoint(
      a['properties'][name],
      b['properties'][name],
      document,
      budget,
      levels - 1,
    )
    for name in sorted(shared)
  )


def _kinds(schema: dict[str, Any]) -> set[str]:
  """Types that an instance may have; integers count as numbers."""
  if 'type' in schema:
    names = set(types_of(schema['type'], 'type'))
  elif (values := _listed(schema)) is not None:
    names = {t for t in JSON_TYPES for v in values if has_type(v, t)}
  else:
    names = set(JSON_TYPES)
  return {'number' if name == 'integer' else name for name in names}


def _listed(schema: dict[str, Any]) -> list[Any] | None:
  return [schema['const']] if 'const' in schema else schema.get('enum')


def _values(schema: dict[str, Any]) -> set[str] | None:
  """Values of `const` or `enum` in a canonical spelling; None without them."""
  values = _listed(schema)
  if values is None:
    return None
  return {json.dumps(_normal(v), sort_keys=True) for v in values}


def _normal(value: Any) -> Any:
  """Replaces floats such as 1.0 by integers, as JSON schema compares them."""
  if isinstance(value, list):
    return [_normal(item) for item in value]
  if isinstance(value, dict):
    return {name: _normal(item) for name, item in value.items()}
  if isinstance(value, float) and value == int(value):
    return int(value)
  return value
