"""JSON without NaN and Infinity, in and out."""

import math

import pytest

from craft_jax import strict_json


@pytest.mark.parametrize('text', ['NaN', '[-Infinity]', '{"id": 1e400}'])
def test_no_infinity_comes_in(text):
  with pytest.raises(ValueError, match=r'no number of JSON|too large'):
    strict_json.loads(text)


def test_large_numbers_that_are_held():
  assert strict_json.loads('[1e308, 12345678901234567890]') == [
    1e308,
    12345678901234567890,
  ]


def test_no_infinity_goes_out():
  with pytest.raises(ValueError, match='not JSON compliant'):
    strict_json.dumps({'id': math.inf})
