"""The arrays: masks, distances, forced tokens, completions, intersections."""

import numpy as np
import oracle
import pytest

from craft_jax.constrain import (
  compile_allowed,
  compile_choices,
  compile_regex,
  compile_schema,
  intersect,
  valid_utf8,
)
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

_AB = Vocabulary('char', 'ab')


def _equal(a, b):
  return all(
    np.array_equal(getattr(a, name), getattr(b, name))
    for name in ('next_state', 'accepting', 'distance', 'forced')
  )


def test_the_arrays_of_a_small_pattern():
  automaton = compile_regex('ab?|bbb', _AB)
  assert automaton.num_states == 5
  next_state = automaton.next_state
  assert next_state.tolist() == [
    [1, 2, -1, -1, -1, -1],
    [-1, 3, -1, -1, -1, -1],
    [-1, 4, -1, -1, -1, -1],
    [-1] * 6,
    [-1, 3, -1, -1, -1, -1],
  ]
  assert automaton.accepting.tolist() == [False, True, False, True, False]
  assert automaton.distance.tolist() == [1, 0, 2, 0, 1]
  assert automaton.forced.tolist() == [-1, -1, 1, -1, 1]
  assert next_state.dtype == np.int32 and automaton.accepting.dtype == bool
  assert automaton.distance.dtype == automaton.forced.dtype == np.int32


def test_arrays_cannot_be_written_to():
  automaton = compile_regex('a', _AB)
  for name in ('next_state', 'class_next', 'accepting', 'distance', 'forced'):
    with pytest.raises(ValueError, match='read-only'):
      getattr(automaton, name)[0] = 0


def test_only_the_empty_text():
  automaton = compile_regex('', _AB)
  assert automaton.next_state.tolist() == [[-1] * 6]
  assert automaton.accepts([]) and not automaton.accepts([0])
  assert not automaton.shortest_completion(0).size


def test_walk():
  automaton = compile_regex('ab', _AB)
  assert automaton.walk([]) == 0
  assert automaton.walk([0]) == automaton.walk(np.array([0])) > 0
  assert automaton.walk([1], automaton.walk([0])) == automaton.walk([0, 1])
  assert automaton.walk([1]) == automaton.walk([_AB.bos]) == -1


def _many(vocabulary):
  rng = np.random.default_rng(5)
  yield compile_schema({'type': 'object'}, vocabulary)
  yield compile_schema({'type': 'string', 'format': 'date-time'}, vocabulary)
  yield compile_choices(['a', 'ab', 'b', ''], vocabulary)
  yield compile_allowed('ab', vocabulary)
  found = 0
  while found < 60:
    try:
      yield compile_regex(oracle.random_pattern(rng), vocabulary)
    except UserError:
      continue
    found += 1


def test_every_state_is_reached_and_reaches_the_end(vocabulary):
  """No dead ends, true distances, forced tokens, specials forbidden."""
  for automaton in _many(vocabulary):
    table, accepting = automaton.next_state, automaton.accepting
    assert (table[:, vocabulary.num_text_tokens :] == -1).all()
    allowed = table >= 0
    assert (allowed.any(axis=1) | accepting).all()
    reached = {0} | set(table[allowed].tolist())
    assert reached == set(range(automaton.num_states))
    # Distances: 0 at the end, else one more than at the best next state.
    padded = np.append(automaton.distance, 1 << 30)
    best = padded[table].min(axis=1) + 1
    assert (automaton.distance == np.where(accepting, 0, best)).all()
    single = ~accepting & (allowed.sum(axis=1) == 1)
    expected = np.where(single, allowed.argmax(axis=1), -1)
    assert (automaton.forced == expected).all()
    for state in range(min(automaton.num_states, 50)):
      ids = automaton.shortest_completion(state)
      assert len(ids) == automaton.distance[state]
      assert automaton.accepting[automaton.walk(ids.tolist(), state)]


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('(a|b)*', '[ab]*'),
    ('(a|b)*', '(a*b*)*'),
    ('a{2,3}', 'aa|aaa'),
    ('a(b|bb)', '(a)b{1,2}'),
    (r'[\s\S]a', r'(?:[^b]|b)a'),
    ('(ab?){0,3}', '(?:ab|a)?(?:a|ab)?(?:ab?)?'),
  ],
)
def test_equal_languages_have_equal_arrays(one, other, vocabulary):
  assert _equal(
    compile_regex(one, vocabulary), compile_regex(other, vocabulary)
  )


@pytest.mark.parametrize(
  ('parts', 'whole'),
  [
    (['a*', '(aa)*', '(aaa)*'], '(a{6})*'),
    (['[ab]*a', 'a?[bc]*a'], 'a?b*a'),
    (['.*', 'x{2}'], 'xx'),
    (['(ab)*'], '(ab)*'),
    ([r'[^\n]{3}', r'\d*'], r'\d{3}'),
  ],
)
def test_intersections(parts, whole, vocabulary):
  parts = [compile_regex(pattern, vocabulary) for pattern in parts]
  assert _equal(intersect(*parts), compile_regex(whole, vocabulary))


def test_intersections_of_different_kinds(byte):
  schema = compile_schema({'type': 'string'}, byte)
  both = intersect(schema, compile_allowed('"abc', byte), valid_utf8(byte))
  assert _equal(both, compile_regex('"[abc]*"', byte))


def test_intersections_of_random_patterns_are_and():
  rng = np.random.default_rng(8)
  vocabulary = Vocabulary('char', oracle.LETTERS)
  matrix = oracle.as_matrix(vocabulary, oracle.random_texts(rng, 300))
  for _ in range(60):
    try:
      a, b = (
        compile_regex(oracle.random_pattern(rng), vocabulary) for _ in range(2)
      )
    except UserError:
      continue
    expected = oracle.accepted(a, matrix) & oracle.accepted(b, matrix)
    try:
      found = oracle.accepted(intersect(a, b), matrix)
    except UserError as e:
      assert 'allows no text' in str(e) and not expected.any()
    else:
      assert (found == expected).all()


def test_what_cannot_be_intersected(byte):
  with pytest.raises(UserError, match='nothing to intersect'):
    intersect()
  with pytest.raises(UserError, match='cannot be combined'):
    intersect(compile_regex('a', _AB), compile_regex('a', byte))
  with pytest.raises(UserError, match='allows no text'):
    intersect(compile_regex('a', _AB), compile_regex('b', _AB))


def test_the_product_is_bounded():
  a, b = (compile_regex(f'(a{{{n}}})*', _AB) for n in (997, 991))
  with pytest.raises(UserError, match='combination of constraints is too larg'):
    intersect(a, b)
