"""Random patterns and texts: the table agrees with `re` and `interegular`."""

import re
import warnings

import numpy as np
import oracle
import pytest

from craft_jax.constrain import compile_regex
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

_PATTERNS, _TEXTS = 650, 400
# An error that is right, but for which `re` has an answer.
_REFUSED = ('a line feed may follow', 'is too large')


@pytest.mark.slow
def test_agrees_with_re():
  rng = np.random.default_rng(2026)
  texts = oracle.random_texts(rng, _TEXTS)
  vocabularies = (Vocabulary('char', oracle.LETTERS), Vocabulary.byte())
  matrices = [oracle.as_matrix(v, texts) for v in vocabularies]
  pairs = 0
  for k in range(_PATTERNS):
    pattern = oracle.random_pattern(rng)
    expression = re.compile(pattern)
    expected = np.array([bool(expression.fullmatch(t)) for t in texts])
    try:
      automaton = compile_regex(pattern, vocabularies[k % 2])
    except UserError as e:
      if not any(reason in str(e) for reason in _REFUSED):
        assert 'allows no text' in str(e) and not expected.any(), pattern
      continue
    found = oracle.accepted(automaton, matrices[k % 2])
    wrong = [texts[k] for k in np.flatnonzero(found != expected)]
    assert not wrong, (pattern, wrong[:3])
    pairs += len(texts)
  assert pairs > 200_000


@pytest.mark.slow
def test_any_text_is_a_pattern_or_an_error():
  """What both take means the same, and nothing is taken that `re` refuses."""
  rng = np.random.default_rng(4)
  vocabulary = Vocabulary('char', oracle.LETTERS)
  texts = oracle.random_texts(rng, 60, most=5)
  matrix = oracle.as_matrix(vocabulary, texts)
  tokens = list('()[{}|*+?.^$\\-,0123ab ^]:P<>=!dwsnAZxu_')
  taken = 0
  for _ in range(4000):
    pattern = ''.join(rng.choice(tokens, rng.integers(1, 9)))
    try:
      found = oracle.accepted(compile_regex(pattern, vocabulary), matrix)
    except UserError as e:
      assert '\n' not in str(e)
      if 'allows no text' not in str(e):
        continue
      found = np.zeros(len(texts), bool)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', FutureWarning)  # of sets in sets
      expression = re.compile(pattern)
    expected = [bool(expression.fullmatch(text)) for text in texts]
    assert found.tolist() == expected, pattern
    taken += 1
  assert taken > 200


# Of another meaning in `interegular`, or not known to it.
_FOREIGN = re.compile(r'\{(?!\d+(,\d*)?\})|\\u|\\0|[wWsSdD]|\?\?|\[\]|\[\^\]')


@pytest.mark.slow
def test_agrees_with_interegular():
  """On every pair, and with no more states than its minimal automaton."""
  interegular = pytest.importorskip('interegular')
  rng = np.random.default_rng(7)
  vocabulary = Vocabulary('char', oracle.LETTERS)
  texts = oracle.random_texts(rng, _TEXTS)
  matrix = oracle.as_matrix(vocabulary, texts)
  alphabet = interegular.fsm.Alphabet.from_groups(
    *map(list, oracle.LETTERS), {interegular.fsm.anything_else}
  )
  pairs = 0
  while pairs < 200_000:
    pattern = oracle.random_pattern(rng, depth=2, anchors=False)
    if _FOREIGN.search(pattern):
      continue
    other = interegular.parse_pattern(pattern).to_fsm(alphabet).reduce()
    expected = np.array([other.accepts(text) for text in texts])
    try:
      automaton = compile_regex(pattern, vocabulary)
    except UserError as e:
      assert 'allows no text' in str(e) and not expected.any(), pattern
      continue
    found = oracle.accepted(automaton, matrix)
    wrong = [texts[k] for k in np.flatnonzero(found != expected)]
    assert not wrong, (pattern, wrong[:3])
    # Minimal automata of a language are equal up to their dead state.
    live = [state for state in other.states if other.islive(state)]
    assert automaton.num_states <= len(live)
    pairs += len(texts)
