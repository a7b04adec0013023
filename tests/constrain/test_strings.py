"""Formats, against the standard library."""

import datetime
import ipaddress
import string
import uuid

import numpy as np
import oracle
import pytest

from craft_jax.constrain import compile_schema
from craft_jax.constrain.strings import FORMATS


def _compile(name, vocabulary):
  return compile_schema({'type': 'string', 'format': name}, vocabulary)


def _takes(name, vocabulary, text):
  return _compile(name, vocabulary).accepts(vocabulary.encode(f'"{text}"'))


def test_dates_are_those_of_the_calendar(chars):
  years = (1, 4, 1900, 1999, 2000, 2023, 2024, 2100, 2400, 9999, 0)
  days = [
    f'{year:04}-{month:02}-{day:02}'
    for year in years
    for month in range(14)
    for day in range(33)
  ]
  matrix = oracle.as_matrix(chars, [f'"{day}"' for day in days])
  found = oracle.accepted(_compile('date', chars), matrix)
  for day, accepts in zip(days, found, strict=True):
    try:
      datetime.date.fromisoformat(day)
    except ValueError:
      assert not accepts, day
    else:
      assert accepts, day


_READERS = {
  'date': datetime.date.fromisoformat,
  'time': datetime.time.fromisoformat,
  'date-time': datetime.datetime.fromisoformat,
  'uuid': uuid.UUID,
  'ipv4': ipaddress.IPv4Address,
  'ipv6': ipaddress.IPv6Address,
  'email': lambda text: text.index('@'),
}


@pytest.mark.parametrize('name', FORMATS)
def test_samples_can_be_read(name, chars):
  rng = np.random.default_rng(0)
  automaton = _compile(name, chars)
  for _ in range(100):
    text = chars.decode(oracle.random_text(automaton, rng))
    _READERS[name](text[1:-1])


@pytest.mark.parametrize(
  ('name', 'yes', 'no'),
  [
    ('time', ['00:00:00Z', '23:59:59.123456+05:30'], ['24:00:00Z', '10:00:00']),
    ('date-time', ['2024-02-29T12:00:00Z'], ['2023-02-29T12:00:00Z']),
    ('date-time', ['2024-01-01T00:00:00-11:59'], ['2024-01-01 00:00:00Z']),
    ('ipv4', ['0.0.0.0', '255.249.199.9'], ['256.1.1.1', '01.1.1.1', '1.1.1']),
    (
      'ipv6',
      ['0:1:2:3:4:5:6:ffff'],
      ['::1', '0:1:2:3:4:5:6', 'g:1:2:3:4:5:6:7'],
    ),
    (
      'email',
      ['a@b.c', "o'n.x+y@a-b.co.uk"],
      ['a@b', '.a@b.c', 'a@-b.c', 'a b@c.d'],
    ),
    ('uuid', ['01234567-89ab-CDEF-0123-456789abcdef'], ['0123456789ab']),
  ],
)
def test_formats(name, yes, no, vocabulary):
  assert all(_takes(name, vocabulary, text) for text in yes)
  assert not any(_takes(name, vocabulary, text) for text in no)


def test_format_pattern_and_length_hold_together(chars):
  schema = {
    'type': 'string',
    'format': 'ipv4',
    'pattern': r'^10\.',
    'maxLength': 8,
  }
  automaton = compile_schema(schema, chars)
  for text, accepts in (
    ('10.0.0.1', True),
    ('11.0.0.1', False),
    ('10.0.0.10', False),
  ):
    assert automaton.accepts(chars.encode(f'"{text}"')) == accepts


def test_every_character_has_one_spelling(byte):
  """Itself or a short escape; other controls cannot be written."""
  automaton = compile_schema({'type': 'string', 'minLength': 1}, byte)
  for code in range(0x80):
    token = chr(code)
    plain = automaton.accepts(byte.encode(f'"{token}"'))
    assert plain == (code >= 32 and token not in '"\\')
  escapes = {
    c for c in string.printable if automaton.accepts(byte.encode(f'"\\{c}"'))
  }
  assert escapes == set('"\\bfnrt')
