"""JSON schema documents: checks, references and error locations."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import unquote

from craft_jax.constrain.budget import Budget
from craft_jax.errors import UserError, hint

JSON_TYPES = (
  'object', 'array', 'string', 'number', 'integer', 'boolean', 'null',
)  # fmt: skip
_MAX_DEPTH = 100
_MAX_BITS = 256  # length of an integer
_VALUE_WORK = 10  # operations per value


def fail(place: str, what: str, remedy: str) -> NoReturn:
  """Raises a `UserError` that names a place in the schema."""
  raise UserError(f'{at(place)}: {what[:200]}; {remedy}')


def at(place: str) -> str:
  """A JSON pointer for an error message, shortened to one line."""
  return f'schema {dump(place[:200])[1:-1]}'


def check_document(document: Any, budget: Budget) -> None:
  """Checks that a schema is JSON and within the limits of depth and size.

  Raises:
    UserError: it is not JSON, nests too deep or is too large.
  """
  stack = [(document, 0)]
  budget.spend(_VALUE_WORK)
  while stack:
    value, depth = stack.pop()
    if depth > _MAX_DEPTH:
      fail('#', f'it nests deeper than {_MAX_DEPTH}', 'use fewer levels')
    inner = []
    if isinstance(value, dict):
      good = all(isinstance(key, str) for key in value)
      budget.spend(sum(map(len, value)) if good else 0)
      inner = list(value.values())
    elif isinstance(value, list):
      good, inner = True, value
    elif isinstance(value, float):
      good = math.isfinite(value)
    elif isinstance(value, int):
      good = value.bit_length() <= _MAX_BITS
    elif isinstance(value, str):
      good = True
      budget.spend(len(value))
    else:
      good = value is None
    if not good:
      name = type(value).__name__
      what = f'it holds a {name} that is not JSON, or is too large'
      fail('#', what, 'give what json.loads reads')
    budget.spend(_VALUE_WORK * len(inner))  # before a huge list is copied
    stack.extend((item, depth + 1) for item in inner)


def resolve(document: Any, ref: Any, where: str) -> Any:
  """Resolves a `$ref` such as `#/$defs/name`.

  Raises:
    UserError: it is not a pointer into this document, or refers to nothing.
  """
  if not isinstance(ref, str) or not (ref == '#' or ref.startswith('#/')):
    fail(where, f'{show(ref)} is not in this schema', 'use #/$defs/NAME')
  found = document
  for step in ref.split('/')[1:]:
    name = unquote(step).replace('~1', '/').replace('~0', '~')
    if isinstance(found, list) and name.isdecimal() and len(name) < 6:
      found = dict(enumerate(found)).get(int(name))
    elif isinstance(found, dict) and name in found:
      found = found[name]
    else:
      names = found if isinstance(found, dict) else ()
      what = f'{show(ref)} refers to nothing{hint(name, names)}'
      fail(where, what, 'define it')
  return found


def types_of(value: Any, where: str) -> list[str]:
  """The type names of the keyword `type`: one name, or a list."""
  names = value if isinstance(value, list) else [value]
  for name in names:
    if name not in JSON_TYPES:
      what = f'{show(name)} is not a type{hint(str(name), JSON_TYPES)}'
      fail(where, what, f'use {", ".join(JSON_TYPES)}')
  if not names:
    fail(where, 'the list of types is empty', 'give one')
  return list(dict.fromkeys(names))


def has_type(value: Any, name: str) -> bool:
  """Whether a JSON value has a type; 1.0 is an integer, true is not."""
  if isinstance(value, bool) or value is None:
    return name == ('null' if value is None else 'boolean')
  if name == 'integer':
    return isinstance(value, int | float) and value == int(value)
  python = {'object': dict, 'array': list, 'string': str}
  return isinstance(value, python.get(name, int | float)) and name not in (
    'boolean',
    'null',
  )


def count_bounds(
  schema: Mapping[str, Any], least: str, most: str, place: str
) -> tuple[int, int | None]:
  """Values of two keywords for counts, such as minItems and maxItems."""
  bounds = []
  for name in (least, most):
    value = schema.get(name, 0)
    whole = isinstance(value, int | float) and value == int(value)
    if isinstance(value, bool) or not whole or value < 0:
      fail(f'{place}/{name}', f'{show(value)} is not a count', 'use 0 or more')
    bounds.append(int(value) if name in schema else None)
  low, high = bounds
  if high is not None and (low or 0) > high:
    fail(place, f'{least} is over {most}', 'swap them')
  return low or 0, high


def decimal(value: int | float, exact: bool) -> Decimal:
  """A numeric bound of the schema as a decimal.

  Args:
    value: the bound.
    exact: use the exact value of the double, not its shortest representation.
  """
  return Decimal(
    repr(value) if isinstance(value, float) and not exact else value
  )


def dump(value: Any) -> str:
  """Serializes a value to compact JSON, escaping only control characters."""
  return json.dumps(value, ensure_ascii=False, separators=(',', ':'))


def escape(name: str) -> str:
  """Escapes a property name for a JSON pointer (RFC 6901)."""
  return name.replace('~', '~0').replace('/', '~1')


def show(value: Any) -> str:
  """A value for an error message, shortened to 40 characters."""
  text = json.dumps(value)
  return text if len(text) <= 40 else f'{text[:37]}...'
