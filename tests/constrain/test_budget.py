"""Hostile patterns end after a bounded number of counted operations."""

import sys

import pytest

from craft_jax.constrain import budget, compile_regex, compile_schema, schema
from craft_jax.constrain.alphabet import Alphabet
from craft_jax.constrain.automaton import from_dfa
from craft_jax.constrain.dfa import from_nfa
from craft_jax.constrain.nfa import Nfa
from craft_jax.constrain.regex import parse
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError


def _work(pattern, vocabulary):
  """Operations until it is compiled or refused, and the error."""
  spent = budget.Budget('pattern')
  alphabet = Alphabet.of(vocabulary)
  try:
    nfa = Nfa(parse(pattern, spent), alphabet.is_utf8, spent)
    from_dfa(from_nfa(nfa, alphabet.occurs, spent), alphabet, spent)
  except UserError as e:
    return spent.work, str(e)
  return spent.work, ''


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('[ab]*a[ab]{20}', 'more than'),
    ('a{1,100000}', 'more than 25000 nodes'),
    ('(a|aa|aaa){1,200}[a-z]{50}', 'more than 900000 operations'),
    ('(' * 10_000 + ')' * 10_000, 'nest deeper than 100, at position 100'),
    ('(' * 10_000, 'nest deeper than 100'),
    ('((a{100}){100}){100}', 'nodes'),
    ('((){5000}){5000}', 'nodes'),
    ('((a?){100}){100}', 'operations'),
    ('(a?b?c?d?){300}', 'operations'),
    ('(a*){1000}', 'operations'),
    ('a' * 1_000_000, 'operations'),
    ('[' + 'a' * 1_000_000 + ']', 'operations'),
    (r'[\w\W' * 2_000 + ']', 'operations'),
    ('|' * 1_000_000, 'operations'),
    ('[ab]*' * 5_000 + 'c', 'operations'),
    (f'({"|".join(f"a{{{k}}}" for k in range(1, 400))})*', 'more than'),
  ],
)
def test_hostile_patterns_are_refused(pattern, message, vocabulary):
  work, error = _work(pattern, vocabulary)
  assert message in error and '\n' not in error
  # The last amount may be large, but is bounded too.
  assert work < 2 * budget.MAX_WORK


@pytest.mark.parametrize(
  ('pattern', 'states'),
  [
    ('[ab]*a[ab]{10}', 2048),
    ('a{0,4000}', 4001),
    ('(x|y|z)*' * 100, 1),
    ('(' * 100 + 'a' + ')' * 100, 2),
    ('((((a*)*)*)*)*', 1),
    ('.*'.join('abcdefgh'), 9),
  ],
)
def test_hard_but_bounded_patterns_compile(pattern, states):
  vocabulary = Vocabulary('char', 'abcdefghxyz')
  assert compile_regex(pattern, vocabulary).num_states == states


def test_a_json_string_of_256_characters(chars):
  automaton = compile_schema({'type': 'string', 'maxLength': 256}, chars)
  assert automaton.num_states == 515
  assert automaton.work < 60_000


def test_recursive_references_and_deep_schemas_cost_next_to_nothing(chars):
  deep = {}
  for _ in range(90):
    deep = {'type': 'array', 'items': deep}
  tree = {'type': 'array', 'items': {'$ref': '#/$defs/tree'}}
  pair = {'anyOf': [{'$ref': '#/$defs/b'}, {'type': 'null'}]}
  for document, message in (
    ({'$ref': '#/$defs/tree', '$defs': {'tree': tree}}, 'contains itself'),
    (
      {'$ref': '#/$defs/a', '$defs': {'a': pair, 'b': {'$ref': '#/$defs/a'}}},
      'contains itself',
    ),
    (deep, 'schemas nest deeper than 32'),
  ):
    spent = budget.Budget('schema')
    with pytest.raises(UserError, match=message) as caught:
      schema.parse(document, chars, spent)
    assert spent.work < budget.MAX_WORK / 100 and '\n' not in str(caught.value)


def test_work_is_the_same_every_time(vocabulary):
  pattern = r'(\w+\s){3}[^x]*é'
  assert _work(pattern, vocabulary) == _work(pattern, vocabulary)


def test_the_table_is_bounded():
  """A large vocabulary allows fewer states."""
  vocabulary = Vocabulary('char', ''.join(map(chr, range(0x4E00, 0x9E00))))
  compile_regex('.{700}', vocabulary)
  with pytest.raises(UserError, match='16777216 table entries'):
    compile_regex('.{900}', vocabulary)


def test_no_recursion(chars):
  """The stack that is left does not matter, since nothing descends."""
  pattern = '(?:a|' * 99 + 'b' + ')*' * 99
  depth = len(_frames())
  limit = sys.getrecursionlimit()
  # The test's own checks of types take most of these.
  sys.setrecursionlimit(depth + 60)
  try:
    automaton = compile_regex(pattern, chars)
  finally:
    sys.setrecursionlimit(limit)
  assert automaton.accepts(chars.encode('abba'))


def _frames():
  frame, found = sys._getframe(), []
  while frame:
    found.append(frame)
    frame = frame.f_back
  return found
