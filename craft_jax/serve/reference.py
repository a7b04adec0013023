"""The tables of docs/serving.md, from what the server is made of.

python -m craft_jax.serve.reference docs/serving.md
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from craft_jax.config.describe import table
from craft_jax.errors import UserError
from craft_jax.runtime.files import write_atomic
from craft_jax.serve import chat, openapi, schemas
from craft_jax.serve.admission import Limits
from craft_jax.serve.metrics import Metrics


def kind(schema: dict[str, Any], named: dict[str, Any]) -> str:
  """The type of a value, in words.

  Args:
    schema: JSON Schema of the value.
    named: the schemas that it refers to, by name.
  """
  if '$ref' in schema:
    inner = named[schema['$ref'].rpartition('/')[2]]['properties']
    return f'object of {", ".join(inner)}'
  if 'anyOf' in schema:
    kinds = [kind(one, named) for one in schema['anyOf']]
    return ', '.join(one for one in kinds if one != 'null') or 'null'
  if 'const' in schema:
    return str(schema['const']).lower()
  if schema['type'] == 'array':
    return f'list of {kind(schema["items"], named)}'
  if schema['type'] == 'object':
    inner = schema.get('additionalProperties')
    each = kind(inner, named) if isinstance(inner, dict) else ''
    return f'object of {each}' if each else 'object'
  return schema['type'] + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
  """` 0 to 5`; a bound that only keeps a number in its bits is left out."""
  low = schema.get('minimum', schema.get('exclusiveMinimum'))
  high = schema.get('maximum')
  if low is None or low < -(2**31):
    return ''
  over = ' over' if 'exclusiveMinimum' in schema else ''
  start = f'{over} {low:g}'
  if high is not None and high < 2**31 - 1:
    return f'{start} to {high:g}'
  return start if over else f' from {low:g}'


def fields(body: type[BaseModel]) -> str:
  """A row per field of a body."""
  schema = body.model_json_schema()
  named = schema.get('$defs', {})
  rows = []
  # Its own before those that it shares with others.
  shared = schema['properties'].keys() - body.__annotations__.keys()
  for name, one in sorted(
    schema['properties'].items(), key=lambda pair: pair[0] in shared
  ):
    default = 'needed'
    if name not in schema.get('required', ()):
      value = one.get('default')
      default = (
        '' if value is None else f'`{str(value).lower() or chr(34) * 2}`'
      )
    rows.append((f'`{name}`', kind(one, named), default, one['description']))
  return table(('field', 'is', 'default', 'means'), rows)


def limits() -> str:
  """A row per limit."""
  rows = []
  for field in dataclasses.fields(Limits):
    ((unit, says),) = field.metadata.items()
    unit = '' if unit == 'N' else f' {unit.lower()}'
    # 1,048,576, and 10 for 10.0.
    shown = f'{field.default:,}'.removesuffix('.0')
    flag = f'`--{field.name.replace("_", "-")}`'
    rows.append((flag, f'{shown}{unit}', says))
  return table(('flag', 'default', 'bounds'), rows)


def metrics() -> str:
  """A row per metric."""
  rows = []
  for family in Metrics().registry.collect():
    name = family.name + '_total' * (family.type == 'counter')
    rows.append((f'`{name}`', family.type, family.documentation))
  return table(('figure', 'kind', 'is'), rows)


def errors() -> str:
  """A row per status."""
  rows = [(str(status), says) for status, says in openapi.WRONG.items()]
  return table(('status', 'when'), rows)


_TABLES: dict[str, Callable[[], str]] = {
  'completions': lambda: fields(schemas.CompletionBody),
  'chat': lambda: fields(chat.ChatBody),
  'validate': lambda: fields(schemas.ValidateBody),
  'score': lambda: fields(schemas.ScoreBody),
  'errors': errors,
  'limits': limits,
  'metrics': metrics,
}


def refreshed(page: str) -> str:
  """Generates the tables of a page anew, between `begin` and `end`.

  Raises:
    UserError: a table that is not known.
  """

  def generated(match: re.Match[str]) -> str:
    if match[2] not in _TABLES:
      raise UserError(f'there is no table {match[2]!r} of the server')
    return f'{match[1]}\n{_TABLES[match[2]]()}\n\n{match[3]}'

  return re.sub(
    r'(<!-- (\w+): begin -->\n).*?(<!-- \2: end -->)',
    generated,
    page,
    flags=re.DOTALL,
  )


if __name__ == '__main__':
  where = pathlib.Path(sys.argv[1])
  write_atomic(where, refreshed(where.read_text(encoding='utf-8')))
