"""Reads a file of requests in JSON Lines."""

import sys
from typing import Any, NamedTuple

from craft_jax.errors import UserError, one_line
from craft_jax.inference.sampling.request import Request
from craft_jax.runtime import strict_json


class Line(NamedTuple):
  """A request and its place in the file.

  Attributes:
    place: file and line, for error messages.
    request: the request.
    id: the user's own id of the request, or None.
  """

  place: str
  request: Request
  id: Any


def read(path: str, usual: Request) -> list[Line]:
  """Reads requests, one JSON object per line; empty lines are skipped.

  Args:
    path: the file, or `-` for standard input.
    usual: values of fields that a line does not set.

  Raises:
    UserError: a line is not an object of valid fields, or there are no lines.
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
    raise UserError(f'{name} has no requests; write one JSON object per line')
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
