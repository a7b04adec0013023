"""Choices, allowed characters, and the cache."""

import concurrent.futures

import pytest

from craft_jax.constrain import (
  compile_allowed,
  compile_choices,
  compile_regex,
  compile_schema,
)
from craft_jax.constrain.cache import Cache
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError


def test_choices(vocabulary):
  choices = ['yes', 'no', 'né', '', 'yesterday', 'yes']
  automaton = compile_choices(choices, vocabulary)
  for text in choices:
    assert automaton.accepts(vocabulary.encode(text))
  for text in ('ye', 'n', 'nó', 'noo', 'yesno'):
    if set(text) <= set(vocabulary.chars or text):
      assert not automaton.accepts(vocabulary.encode(text))


def test_many_choices(byte):
  choices = [f'choice number {k}' for k in range(1000)]
  automaton = compile_choices(choices, byte)
  assert all(automaton.accepts(byte.encode(text)) for text in choices)
  assert not automaton.accepts(byte.encode('choice number 1000'))
  assert automaton.num_states < 30  # common beginnings and ends are shared


def test_mistaken_choices(chars, byte):
  for wrong in ([], 'abc'):
    with pytest.raises(UserError, match='a list of at least one text'):
      compile_choices(wrong, chars)
  with pytest.raises(UserError, match=r"choice 1: .* write 'ü' \(U\+00FC\)"):
    compile_choices(['a', 'bü'], chars)
  with pytest.raises(UserError, match=r'U\+D800'):
    compile_choices(['\ud800'], byte)
  with pytest.raises(UserError, match='more than 25000 nodes'):
    compile_choices(['a' * 30_000], chars)


def test_allowed_characters(vocabulary):
  automaton = compile_allowed('aé漢a', vocabulary)
  assert automaton.accepts(vocabulary.encode(''))
  assert automaton.accepts(vocabulary.encode('é漢aa漢'))
  assert not automaton.accepts(vocabulary.encode('ab'))
  only_empty = compile_allowed('', vocabulary)
  assert only_empty.accepts([]) and only_empty.num_states == 1


def test_allowed_characters_must_be_in_the_vocabulary(chars):
  with pytest.raises(UserError, match=r"allowed characters: .*'ü'"):
    compile_allowed('aü', chars)


def test_the_same_constraint_is_compiled_once(chars, byte):
  assert compile_regex('a+', chars) is compile_regex('a+', chars)
  assert compile_regex('a+', chars) is not compile_regex('a+', byte)
  again = Vocabulary.from_json(chars.to_json())
  assert compile_regex('a+', chars) is compile_regex('a+', again)
  # A pattern, a list and a schema that look alike are not alike.
  one, two = compile_choices(['1'], chars), compile_choices(['1', ''], chars)
  assert one is not two and two.accepts([])
  assert compile_schema({'const': 1}, chars) is not one
  true, one = ({'const': value} for value in (True, 1))
  assert compile_schema(true, chars) is not compile_schema(one, chars)


def test_the_cache_drops_what_was_used_longest_ago(chars):
  automata = {n: compile_regex(f'a{{{n}}}', chars) for n in range(1, 5)}
  size = len(automata[1].token_class)
  cache = Cache(max_count=3, max_entries=10 * size)
  calls = []

  def get(n):
    def compile_it():
      calls.append(n)
      return automata[n]

    assert cache.get(n, compile_it) is automata[n]

  for n in (1, 2, 3, 1, 4):  # 2 + 3 + 4 states, then 5 more: over 10
    get(n)
  assert calls == [1, 2, 3, 4] and len(cache) == 2
  get(1)
  get(4)
  assert calls == [1, 2, 3, 4]
  get(2)
  assert calls == [1, 2, 3, 4, 2] and len(cache) == 3


def test_errors_and_giants_are_not_kept(chars):
  cache = Cache(max_count=3, max_entries=10)

  def fail():
    raise UserError('no')

  with pytest.raises(UserError):
    cache.get('x', fail)
  assert not len(cache)
  giant = compile_regex('a{50}', chars)
  assert cache.get('x', lambda: giant) is giant
  assert not len(cache)


def test_threads_share_the_cache(chars):
  patterns = [f'(?:thread){{{k % 7}}}' for k in range(200)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda p: compile_regex(p, chars), patterns))
  for pattern, automaton in zip(patterns, found, strict=True):
    times = int(pattern[-2])
    assert automaton.accepts(chars.encode('thread' * times))
    assert automaton.num_states == 6 * times + 1
