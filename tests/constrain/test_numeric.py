"""Numbers: exactly those in range, compared as doubles are."""

import itertools
import json
import math
import re

import jsonschema
import numpy as np
import oracle
import pytest

from craft_jax.constrain import compile_schema
from craft_jax.data.text.vocabulary import Vocabulary

_DIGITS = Vocabulary('char', '0123456789-.')
_INTEGERS = [
  *range(-1300, 1300),
  *(10**k + d for k in range(3, 18) for d in (-1, 0, 1)),
]


def _accepted(schema, texts):
  automaton = compile_schema(schema, _DIGITS)
  return oracle.accepted(automaton, oracle.as_matrix(_DIGITS, texts))


@pytest.mark.parametrize(
  'bounds',
  [
    {},
    {'minimum': 0},
    {'maximum': 0},
    {'exclusiveMinimum': 0},
    {'exclusiveMaximum': 0},
    {'minimum': -12, 'maximum': 1234},
    {'minimum': 7, 'maximum': 7},
    {'minimum': -100, 'maximum': -99},
    {'exclusiveMinimum': 99, 'exclusiveMaximum': 101},
    {'minimum': 9.5, 'maximum': 1000.001},
    {'minimum': -9.5, 'exclusiveMaximum': -0.5},
    {'minimum': 3, 'exclusiveMinimum': 3, 'maximum': 9, 'exclusiveMaximum': 20},
    {'multipleOf': 7, 'minimum': -30},
    {'multipleOf': 100},
    {'multipleOf': 5.0, 'exclusiveMaximum': 999},
    {'minimum': 10**17, 'maximum': 1e18},
  ],
)
def test_integers_in_range(bounds):
  schema = {'type': 'integer'} | bounds
  is_valid = jsonschema.Draft202012Validator(schema).is_valid
  found = _accepted(schema, list(map(str, _INTEGERS)))
  assert found.tolist() == [is_valid(n) for n in _INTEGERS]


@pytest.mark.parametrize('digits', [1e23, 2**70, -(2**70), 1e22])
def test_integers_beyond_doubles_are_compared_exactly(digits):
  exact = int(digits)
  near = [exact + d for d in range(-3, 4)]
  for name in ('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'):
    schema = {'type': 'integer', name: digits}
    is_valid = jsonschema.Draft202012Validator(schema).is_valid
    found = _accepted(schema, list(map(str, near)))
    assert found.tolist() == [is_valid(n) for n in near], name


_NUMBER = re.compile(r'-?(0|[1-9][0-9]*)(\.[0-9]+)?')


@pytest.mark.parametrize(
  'bounds',
  [
    {},
    {'minimum': 0},
    {'exclusiveMinimum': 0, 'maximum': 1},
    {'minimum': -0.5, 'exclusiveMaximum': 1.05},
    {'minimum': 0.1, 'maximum': 0.1},
    {'minimum': 9.9, 'maximum': 10.1},
    {'minimum': -11, 'maximum': -9.05},
    {'exclusiveMinimum': -1.1, 'exclusiveMaximum': -0.01},
    {'minimum': 1e-7, 'maximum': 1e20},
    {'multipleOf': 3, 'maximum': 10},
  ],
)
def test_numbers_in_range(bounds):
  """Every text of up to five of the tokens."""
  texts = [
    ''.join(tokens)
    for length in range(1, 6)
    for tokens in itertools.product('-.0159', repeat=length)
  ]
  schema = {'type': 'number'} | bounds
  is_valid = jsonschema.Draft202012Validator(schema).is_valid
  for text, accepts in zip(texts, _accepted(schema, texts), strict=True):
    value = json.loads(text) if _NUMBER.fullmatch(text) else None
    expected = value is not None and is_valid(value)
    if value == 0 and text.startswith('-'):
      expected = False
    if 'multipleOf' in bounds and '.' in text:
      expected = False  # written as integers
    assert accepts == expected, text


def test_strict_bounds_hold_for_doubles():
  """15 digits next to a bound: never so near that they are read as it."""
  rng = np.random.default_rng(3)
  for _ in range(12):
    bound = float(rng.normal(0, 10.0 ** rng.integers(-3, 6)))
    automaton = compile_schema(
      {'type': 'number', 'exclusiveMaximum': bound}, _DIGITS
    )
    for digits in (12, 13, 14, 15):
      scale = 10 ** (digits - 1 - max(0, math.floor(math.log10(abs(bound)))))
      for step in (-1, 0, 1):
        text = f'{(round(bound * scale) + step) / scale:.15f}'
        text = text[: digits + 1 + text.startswith('-')].rstrip('.')
        if automaton.accepts(_DIGITS.encode(text)):
          assert float(text) < bound, (text, bound)


def test_at_most_15_digits_and_18_of_integers():
  number, integer = {'type': 'number'}, {'type': 'integer'}
  texts = [
    '1' * 15,
    '1' * 16,
    '1.' + '2' * 14,
    '1.' + '2' * 15,
    '0.' + '3' * 14,
  ]
  assert _accepted(number, texts).tolist() == [True, False, True, False, True]
  assert _accepted(integer, ['9' * 18, '9' * 19]).tolist() == [True, False]
  wide = {'type': 'integer', 'maximum': 10**20}
  assert _accepted(wide, ['9' * 20]).all()
