"""The sets of characters, against Python's own."""

import re
import unicodedata

import pytest

from craft_jax.constrain import characters
from craft_jax.constrain.intervals import complement

_ALL = ''.join(map(chr, range(0x110000)))


def _members(intervals):
  return {code for low, high in intervals for code in range(low, high + 1)}


@pytest.mark.parametrize('letter', ['d', 'w', 's'])
def test_shorthands_are_those_of_re(letter):
  found = characters.shorthand(letter)
  assert _members(found) == {ord(c) for c in re.findall(f'\\{letter}', _ALL)}
  rest = _members(complement(found))
  assert rest == {ord(c) for c in re.findall(f'\\{letter.upper()}', _ALL)}


@pytest.mark.parametrize('name', ['Lu', 'Cn', 'Cs', 'Zs', 'L', 'N', 'C'])
def test_categories_are_those_of_unicodedata(name):
  expected = {ord(c) for c in _ALL if unicodedata.category(c).startswith(name)}
  assert _members(characters.category(name)) == expected


def test_all_categories_are_known():
  assert set(characters.CATEGORIES) == set(map(unicodedata.category, _ALL))
