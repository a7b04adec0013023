"""Vocabularies: total, reversible, saved and loaded."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_jax.data.text.vocabulary import SPECIALS, Vocabulary
from craft_jax.errors import UserError

# Any code point of any plane, lone surrogates included.
any_character = st.integers(0, 0x10FFFF).map(chr)
any_text = st.text(any_character)
scalar_text = st.text()  # without surrogates

BYTE = Vocabulary.byte()


def test_specials_follow_the_tokens():
  char = Vocabulary.from_text('a')
  assert (char.num_text_tokens, char.size) == (1, 5)
  for vocabulary in (BYTE, char):
    n = vocabulary.num_text_tokens
    assert (vocabulary.bos, vocabulary.eos) == (n, n + 1)
    assert (vocabulary.pad, vocabulary.unk) == (n + 2, n + 3)
    assert vocabulary.size == n + 4
    assert vocabulary.bos > 0
  assert BYTE.bos == 256


def test_dtype_holds_every_id():
  letters = ''.join(map(chr, range(1000, 1300)))
  assert BYTE.dtype == np.uint16
  assert Vocabulary('char', letters[:252]).dtype == np.uint8
  assert Vocabulary('char', letters[:253]).dtype == np.uint16


def test_most_frequent_first_ties_by_code_point():
  assert Vocabulary.from_text('ccbaab\U0001f600c').chars == 'cab\U0001f600'
  assert Vocabulary.from_text('ccbaabc', 2, 'replace').chars == 'ca'


def test_every_code_point_round_trips_as_bytes():
  scalars = [*range(0xD800), *range(0xE000, 0x110000)]
  text = ''.join(map(chr, scalars))
  assert BYTE.decode(BYTE.encode(text)) == text


def test_every_code_point_round_trips_as_characters():
  for start in range(0, 0x110000, 0x8000):
    text = ''.join(map(chr, range(start, start + 0x8000)))
    vocabulary = Vocabulary.from_text(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(ids, np.arange(0x8000))
    assert vocabulary.decode(ids) == text


@given(scalar_text)
def test_byte_round_trip(text):
  ids = BYTE.encode(text)
  assert ids.dtype == BYTE.dtype and ids.ndim == 1
  assert BYTE.decode(ids) == text
  assert BYTE.decode_bytes(ids) == text.encode('utf-8')


@given(st.binary())
def test_any_bytes_round_trip(data):
  assert BYTE.decode_bytes(BYTE.encode(data)) == data
  assert BYTE.decode(BYTE.encode(data)) == data.decode('utf-8', 'replace')


@given(any_text)
def test_any_string_encodes_as_bytes(text):
  data = BYTE.decode_bytes(BYTE.encode(text))
  expected = b''.join(
    bytes([ord(c) - 0xDC00])
    if '\udc80' <= c <= '\udcff'
    else c.encode('utf-8', 'surrogatepass')
    for c in text
  )
  assert data == expected


@given(any_text.filter(bool))
def test_char_round_trip(text):
  vocabulary = Vocabulary.from_text(text)
  ids = vocabulary.encode(text)
  assert vocabulary.decode(ids) == text
  assert ids.max() < vocabulary.num_text_tokens
  assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


@given(any_text, any_text.filter(bool))
def test_replace_gives_unk_exactly_where_uncovered(text, known):
  vocabulary = Vocabulary.from_text(known, unknown='replace')
  ids = vocabulary.encode(text)
  assert [i == vocabulary.unk for i in ids] == [c not in known for c in text]
  assert vocabulary.decode(ids) == ''.join(c for c in text if c in known)


@given(st.binary())
def test_char_vocabulary_takes_any_bytes(data):
  vocabulary = Vocabulary.from_text('abc', unknown='replace')
  text = data.decode('utf-8', 'surrogateescape')
  np.testing.assert_array_equal(
    vocabulary.encode(data), vocabulary.encode(text)
  )


def test_escaped_bytes_round_trip_when_the_text_held_them():
  data = b'a\x80\xff\xc3\xa9'
  text = data.decode('utf-8', 'surrogateescape')
  vocabulary = Vocabulary.from_text(text)
  assert vocabulary.decode_bytes(vocabulary.encode(data)) == data


def test_empty():
  char = Vocabulary.from_text('a')
  for vocabulary in (BYTE, char):
    for nothing in ('', b''):
      ids = vocabulary.encode(nothing)
      assert ids.shape == (0,) and ids.dtype == vocabulary.dtype
    assert vocabulary.decode([]) == ''
    assert vocabulary.decode_bytes([]) == b''
    assert vocabulary.show([]) == ''


def test_spelling_of_a_special_is_ordinary_text():
  text = ''.join(SPECIALS)
  char = Vocabulary.from_text(text)
  for vocabulary in (BYTE, char):
    ids = vocabulary.encode(text)
    assert len(ids) == len(text) == 20
    assert ids.max() < vocabulary.num_text_tokens
    assert vocabulary.decode(ids) == text


def test_specials_vanish_from_text_and_show_to_people():
  for vocabulary in (BYTE, Vocabulary.from_text('ab')):
    a, b = vocabulary.encode('ab')
    v = vocabulary
    ids = [v.bos, a, v.unk, v.pad, b, v.eos]
    assert v.decode(ids) == 'ab'
    assert v.decode_bytes(np.array(ids)) == b'ab'
    assert v.show(ids) == '<bos>a<unk><pad>b<eos>'


@given(st.lists(st.integers(0, BYTE.size - 1)))
def test_show_is_printable(ids):
  BYTE.show(ids).encode('utf-8')


def test_show_spells_what_is_not_text():
  assert BYTE.show([0x41, 0x80, 0xC3, 0xA9]) == 'A\\x80é'
  odd = Vocabulary.from_text('\ud800\udc80a')
  assert odd.show(odd.encode('a\ud800\udc80')) == 'a\\ud800\\udc80'


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('abé', ['U+00E9', 'LATIN SMALL LETTER E WITH ACUTE', 'position 2']),
    ('a\x00', ['U+0000', 'unnamed', 'position 1']),
    ('\U0001f600', ['U+1F600', 'GRINNING FACE', 'position 0']),
    (b'ab\x80', ['U+DC80', 'byte 0x80', 'position 2']),
    ('é' * 5, ['position 0']),
  ],
)
def test_unknown_character_names_itself_and_its_position(text, words):
  with pytest.raises(UserError) as caught:
    Vocabulary.from_text('ab').encode(text)
  message = str(caught.value)
  assert '\n' not in message
  for word in [*words, 'text.unknown=replace']:
    assert word in message


def test_position_beyond_the_first_chunk(monkeypatch):
  monkeypatch.setattr('craft_jax.data.text.utf8._CHUNK', 3)
  vocabulary = Vocabulary.from_text('aé' * 5)
  assert vocabulary.chars == 'aé'
  assert vocabulary.decode(vocabulary.encode('aéaéa')) == 'aéaéa'
  with pytest.raises(UserError, match='position 7'):
    vocabulary.encode('aaaaaaab')


def test_too_many_characters_name_the_setting():
  text = ''.join(map(chr, range(0x10000, 0x10000 + 65533)))
  with pytest.raises(UserError, match=r'text\.max_chars=65532'):
    Vocabulary.from_text(text)
  fits = Vocabulary.from_text(text, 65532, 'replace')
  assert fits.size == 65536
  assert fits.encode(text)[-1] == fits.unk == 65535


@pytest.mark.parametrize(
  'fields',
  [
    {'kind': 'word'},
    {'kind': 'byte', 'chars': 'a'},
    {'kind': 'byte', 'unknown': 'ignore'},
    {'kind': 'char'},
    {'kind': 'char', 'chars': 'aba'},
  ],
)
def test_impossible_vocabularies(fields):
  with pytest.raises(UserError):
    Vocabulary(**fields)


def test_json_round_trip_keeps_neighbouring_surrogates_apart():
  for vocabulary in (
    BYTE,
    Vocabulary('char', '\ud83d\ude00"\\\n\ufeff', 'replace'),
  ):
    text = vocabulary.to_json()
    assert text.isascii()
    again = Vocabulary.from_json(text)
    assert again == vocabulary
    assert again.fingerprint == vocabulary.fingerprint


def test_fingerprint_tells_vocabularies_apart():
  several = [
    BYTE,
    Vocabulary('char', 'ab'),
    Vocabulary('char', 'ba'),
    Vocabulary('char', 'ab', 'replace'),
  ]
  prints = {v.fingerprint for v in several}
  assert len(prints) == len(several)
  assert all(len(p) == 64 for p in prints)


_GOOD = {'kind': 'char', 'unknown': 'error', 'chars': ['a', 'b']}


@pytest.mark.parametrize(
  'text',
  [
    '',
    '{',
    '[]',
    '{}',
    'null',
    json.dumps(_GOOD | {'chars': ['ab']}),
    json.dumps(_GOOD | {'chars': ['a', 'a']}),
    json.dumps(_GOOD | {'chars': 'ab'}),
    json.dumps(_GOOD | {'chars': [1]}),
    json.dumps(_GOOD | {'chars': []}),
    json.dumps(_GOOD | {'kind': ['char']}),
    json.dumps(_GOOD | {'unknown': None}),
    json.dumps(_GOOD | {'more': 1}),
    json.dumps({'kind': 'char', 'chars': ['a']}),
  ],
)
def test_malformed_json_is_one_line(text):
  with pytest.raises(UserError) as caught:
    Vocabulary.from_json(text)
  assert '\n' not in str(caught.value)


def test_good_json_loads():
  assert Vocabulary.from_json(json.dumps(_GOOD)) == Vocabulary('char', 'ab')


@pytest.mark.parametrize(
  'ids', [[260], [-1], [0.5], [[1, 2], [3, 4]], [True], 7]
)
def test_ids_outside_the_vocabulary_are_bugs(ids):
  for method in (BYTE.decode, BYTE.decode_bytes, BYTE.show):
    with pytest.raises(ValueError):
      method(ids)


def test_text_does_not_import_jax():
  program = (
    'import sys, craft_jax.data.text.cleaning, craft_jax.data.text.streaming\n'
    'import craft_jax.data.text.character_classes\n'
    'sys.exit("jax" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', program]).returncode == 0
