"""A file of requests: a JSON object a line."""

import sys
from typing import Any, NamedTuple

from craft_jax.errors import UserError, one_line
from craft_jax.inference.sampling.request import Request
from craft_jax.runtime import strict_json


class Line(NamedTuple):
  """A request and where it stands.

  Attributes:
    place: for errors.
    request: what is asked for.
    id: the sender's own mark; None for none.
  """

  place: str
  request: Request
  id: Any


def read(path: str, usual: Request) -> list[Line]:
  """The requests of a file, or of standard input for `-`.

  Args:
    path: the file. Empty lines are passed over.
    usual: what holds where a line says nothing.

  Raises:
    UserError: a line that is not an object of known settings, or none at all.
  """
  if path == '-':
    name, data = 'standard input', sys.stdin.buffer.read()
  else:
    with open(path, 'rb') as f:
      name, data = path, f.read()
  lines = [
    _line(f'{name}, line {number}', line, usual)
    for number, line in enumerate(data.split(b'\n'), 1)
    if line.strip()
  ]
  if not lines:
    raise UserError(f'{name} has no requests; give a JSON object a line')
  return lines


def _line(place: str, line: bytes, usual: Request) -> Line:
  try:
    fields = strict_json.loads(line)
  except (ValueError, RecursionError) as e:
    raise UserError(f'{place}: not JSON: {one_line(e)}') from e
  if not isinstance(fields, dict):
    raise UserError(
      f'{place}: must be an object like {{"prompt": "def ", "seed": 1}}'
    )
  mark = fields.pop('id', None)
  try:
    return Line(place, usual.changed(fields), mark)
  except UserError as e:
    raise UserError(f'{place}: {e}') from e
