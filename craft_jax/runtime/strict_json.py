"""JSON as RFC 8259 has it, in and out: no NaN and no Infinity.

Python's own reader takes `NaN` and makes `Infinity` of `1e400`; its writer
gives both back, which no other reader takes.
"""

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
  """What `text` holds.

  Raises:
    ValueError: it is not JSON, or has a number that a float64 cannot hold.
  """
  return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def dumps(value: Any, **options: Any) -> str:
  """`value` on one line, as `json.dumps` with these options.

  Raises:
    ValueError: a number in it is not finite.
  """
  return json.dumps(value, allow_nan=False, **options)


def _refuse(word: str) -> Any:
  raise ValueError(f'{word} is no number of JSON')


def _finite(text: str) -> float:
  number = float(text)
  if math.isinf(number):
    raise ValueError(f'the number {text[:40]} is too large')
  return number
