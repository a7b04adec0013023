"""The dialect, construct by construct, and its errors."""

import re

import pytest

from craft_jax.constrain import compile_regex
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError


def _accepts(pattern, text, vocabulary):
  return compile_regex(pattern, vocabulary).accepts(vocabulary.encode(text))


@pytest.mark.parametrize(
  ('pattern', 'yes', 'no'),
  [
    ('', [''], ['a']),
    ('abc', ['abc'], ['', 'ab', 'abcd']),
    ('a|bc|', ['a', 'bc', ''], ['b', 'abc']),
    ('a*', ['', 'aaa'], ['b']),
    ('a+b?', ['a', 'aab'], ['', 'b']),
    ('a{2}', ['aa'], ['a', 'aaa']),
    ('a{2,}', ['aa', 'aaaaa'], ['a']),
    ('a{1,3}', ['a', 'aaa'], ['', 'aaaa']),
    ('a{,2}', ['', 'aa'], ['aaa']),
    ('a{0}', [''], ['a']),
    ('a{x}', ['a{x}'], ['a']),
    ('{}', ['{}'], ['']),
    ('a*?b+?c??d{1,2}?', ['bd', 'aabbcdd'], ['d']),
    ('(a(b)(?:c)(?P<n>d)(?<m>e))+', ['abcde'], ['abcd']),
    ('(a|b)*abb', ['abb', 'babb'], ['ab']),
    ('()', [''], ['a']),
    ('.', ['a', ' ', 'é', '漢', '😀'], ['', '\n', 'ab']),
    ('[a-c_]', ['a', 'c', '_'], ['d', '']),
    ('[^a-c]', ['d', '\n', '😀'], ['a', '']),
    ('[]a]', [']', 'a'], ['[']),
    ('[^]a]', ['['], [']', 'a']),
    ('[a-]', ['a', '-'], ['b']),
    ('[-a]', ['a', '-'], ['b']),
    (r'[\]\\\-^]', [']', '\\', '-', '^'], ['a']),
    (r'[\d_]', ['7', '_'], ['a']),
    (r'[^\s\w]', ['!', '😀'], ['a', ' ', '漢']),
    (r'\d\w\s', ['7é\n'], ['é7 ']),
    (r'\D\W\S', ['a!b'], ['7!b', 'aab']),
    (r'\n\t\x41\u00e9\U0001F600\0*', ['\n\tAé😀'], ['nt']),
    (r'\.\*\{\/\-', ['.*{/-'], ['a']),
    (r'\p{Lu}\p{Ll}\p{L}', ['Aé漢'], ['aAA']),
    (r'\P{L}[\p{Nd}\p{So}]', ['!7', '7😀'], ['a7']),
    ('^abc$', ['abc'], ['abcd']),
    (r'\A(?:^a|b)\Z', ['a', 'b'], ['ab']),
    ('a^b|c', ['c'], ['ab', 'a']),
    ('(^a|b)*', ['', 'a', 'ab', 'bb'], ['ba', 'aa']),
    ('(a$|b)*', ['', 'a', 'ba'], ['ab']),
    ('$^', [''], ['a']),
    ('(a*)*b', ['b', 'aab'], ['a']),
    ('(?:a?){3}', ['', 'aaa'], ['aaaa']),
    ('((a{2}){2}){2}', ['a' * 8], ['a' * 7, 'a' * 9]),
  ],
)
def test_constructs(pattern, yes, no, vocabulary):
  for text in [*yes, *no]:
    expected = text in yes
    assert _accepts(pattern, text, vocabulary) == expected, (pattern, text)
    # `\p` and `(?<` are not Python's; all else means the same there.
    if r'\p' not in pattern.lower() and '(?<' not in pattern:
      assert (re.fullmatch(pattern, text) is not None) == expected


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('ab(?=c)', 'look-ahead, (?=, is not supported, at position 2'),
    ('(?!c)', 'negative look-ahead'),
    ('(?<=c)', 'look-behind'),
    ('(?<!c)', 'negative look-behind'),
    ('(?>a)', 'an atomic group'),
    ('(?i)a', 'a group with flags'),
    ('(?i:a)', 'a group with flags'),
    ('(?#a)', 'a comment'),
    ('(a)(?(1)b)', 'a conditional group'),
    ('(?P<n>a)(?P=n)', 'a back-reference, (?P=, is not supported'),
    (r'(a)\1', r'\1, a back-reference, is not supported, at position 3'),
    (r'[\1]', r'\1, an octal escape'),
    (r'a\b', r'\b, a word boundary, is not supported, at position 1'),
    (r'\B', r'\B, a word boundary'),
    (r'\q', r'\q is not an escape'),
    (r'\N{DASH}', r'\N is not an escape'),
    (r'\x4', r'\x needs 2 hexadecimal digits'),
    (r'\u12g4', r'\u needs 4'),
    (r'\U00110000', 'over U+10FFFF'),
    (r'\p{Lx}', "'Lx' is not a Unicode category"),
    (r'\pL', 'is not a Unicode category'),
    ('a\\', 'a backslash at the end'),
    ('(a', 'this ( is never closed, at position 0'),
    ('a)', 'this ) closes nothing, at position 1'),
    ('a[b', 'this [ is never closed, at position 1'),
    ('[a-', 'this [ is never closed'),
    ('[]', 'this [ is never closed'),
    ('[b-a]', 'the wrong way round'),
    (r'[a-\d]', 'a range ends in a set'),
    ('*a', 'nothing to repeat, at position 0'),
    ('(|*a)', 'nothing to repeat'),
    ('^*', 'an anchor cannot be repeated'),
    ('a**', 'a repeat of a repeat'),
    ('a{2}{3}', 'a repeat of a repeat'),
    ('a*+', 'a possessive repeat'),
    ('a{3,2}', 'the bounds are the wrong way round'),
    ('a{1234567}', 'a bound has more than 6 digits'),
    ('(?P<1>a)', "'1' is not a name"),
    ('(?P<n>a)(?P<n>b)', "'n' is not a name, or is used twice"),
    ('a$\n', 'a line feed may follow the $ at position 1'),
    (r'(a$|\s)*', 'a line feed may follow the $'),
    ('a^b', 'allows no text'),
    ('[^\\s\\S]', 'allows no text'),
  ],
)
def test_errors_are_one_line(pattern, message, chars):
  with pytest.raises(UserError) as caught:
    compile_regex(pattern, chars)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_characters_that_the_vocabulary_lacks_are_not_allowed():
  vocabulary = Vocabulary('char', 'ab')
  automaton = compile_regex(r'(\w|!)+', vocabulary)
  assert automaton.accepts(vocabulary.encode('abba'))
  assert automaton.token_class.tolist() == [0, 0, -1, -1, -1, -1]
  with pytest.raises(UserError, match='allows no text'):
    compile_regex('c+', vocabulary)


def test_a_surrogate_of_a_char_vocabulary_is_a_character():
  vocabulary = Vocabulary('char', 'a\ud800')
  assert _accepts('[^b]{2}', 'a\ud800', vocabulary)
  assert _accepts(r'\p{Cs}', '\ud800', vocabulary)
