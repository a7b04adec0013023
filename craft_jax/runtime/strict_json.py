"""JSON by RFC 8259, without NaN and Infinity.

Python's `json` reads `NaN` and turns `1e400` into infinity, and it writes both
in a form that other parsers reject.
"""

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
  """Parses JSON.

  Raises:
    ValueError: it is not JSON, or a number exceeds the range of float64.
  """
  return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def dumps(value: Any, **options: Any) -> str:
  """Serializes `value` by `json.dumps` with these options.

  Raises:
    ValueError: a number is not finite.
  """
  return json.dumps(value, allow_nan=False, **options)


def _refuse(word: str) -> Any:
  raise ValueError(f'{word} is not a JSON number')


def _finite(text: str) -> float:
  number = float(text)
  if math.isinf(number):
    raise ValueError(f'the number {text[:40]} is too large')
  return number
