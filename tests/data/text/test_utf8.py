"""Borders between characters, and text that arrives in pieces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_jax.data.text import utf8
from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

BYTE = Vocabulary.byte()
TEXT = 'aé€\U0001f600\x00z'  # 1, 2, 3, 4, 1 and 1 bytes

# Bytes that are often nearly UTF-8: pieces of characters, and noise.
nearly_utf8 = st.lists(
  st.one_of(
    st.text(max_size=3).map(str.encode),
    st.binary(max_size=2),
    st.sampled_from([b'\xe2\x82', b'\xf0\x9f\x98', b'\xed\xa0\x80', b'\xc0']),
  )
).map(b''.join)


def test_each_byte_alone():
  decoder = StreamDecoder(BYTE)
  said = [decoder.feed([token]) for token in BYTE.encode(TEXT)]
  assert said == [
    *['a', '', 'é', '', '', '€'],
    *['', '', '', '\U0001f600', '\x00', 'z'],
  ]
  assert decoder.flush() == ''


def test_incomplete_end_is_one_replacement_and_a_fresh_start():
  decoder = StreamDecoder(BYTE)
  assert decoder.feed([0xF0, 0x9F, 0x98]) == ''
  assert decoder.flush() == '\ufffd'
  assert decoder.flush() == ''
  assert decoder.feed([0x80]) == '\ufffd'
  assert decoder.feed(BYTE.encode('é')) == 'é'


def test_hopeless_bytes_do_not_stall():
  decoder = StreamDecoder(BYTE)
  assert decoder.feed([0xFF]) == '\ufffd'
  assert decoder.feed([0xE2, 0x41]) == '\ufffdA'


@given(nearly_utf8, st.lists(st.integers(1, 5), min_size=1))
def test_any_pieces_give_the_whole(data, sizes):
  decoder, ids, said = StreamDecoder(BYTE), BYTE.encode(data), []
  start = 0
  while start < len(ids):
    size = sizes[len(said) % len(sizes)]
    said.append(decoder.feed(ids[start : start + size]))
    start += size
  assert ''.join(said) + decoder.flush() == BYTE.decode(ids)


@given(st.text())
def test_no_premature_replacement(text):
  decoder = StreamDecoder(BYTE)
  said = ''
  for token in BYTE.encode(text):
    said += decoder.feed([token])
    assert text.startswith(said)
  assert said == text


def test_specials_pass_through_a_character():
  decoder = StreamDecoder(BYTE)
  assert decoder.feed([0xC3, BYTE.bos]) == ''
  assert decoder.feed([0xA9, BYTE.eos]) == 'é'


def test_characters_stream_at_once():
  vocabulary = Vocabulary.from_text(TEXT)
  decoder = StreamDecoder(vocabulary)
  ids = [*vocabulary.encode(TEXT), vocabulary.eos]
  assert ''.join(decoder.feed([i]) for i in ids) == TEXT
  assert decoder.flush() == ''


def test_boundaries_of_text():
  data = TEXT.encode()
  borders = [utf8.boundary(data, i) for i in range(len(data) + 1)]
  assert borders == [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 12]
  as_ids = BYTE.encode(data)
  assert [utf8.boundary(as_ids, i) for i in range(len(data) + 1)] == borders


def test_specials_are_borders():
  ids = np.array([0xE2, BYTE.bos, 0x82, 0xAC, BYTE.bos], np.uint16)
  assert [utf8.boundary(ids, i) for i in range(6)] == [0, 1, 2, 3, 4, 5]


@given(nearly_utf8, st.data())
def test_a_split_at_a_boundary_changes_nothing(data, draw):
  position = draw.draw(st.integers(0, len(data)))
  border = utf8.boundary(data, position)
  assert position - 3 <= border <= position
  parts = [data[:border], data[border:]]
  # Every well-formed character survives on its own side.
  kept = ''.join(part.decode('utf-8', 'ignore') for part in parts)
  assert kept == data.decode('utf-8', 'ignore')


@given(st.text(st.integers(0, 0x10FFFF).map(chr)))
def test_code_points_are_reversible(text):
  codes = utf8.code_points(text)
  assert codes.tolist() == [ord(c) for c in text]
  assert utf8.from_code_points(codes) == text


def test_count_characters():
  codes, counts = utf8.count_characters('b\U0001f600ab')
  assert codes.tolist() == [ord('a'), ord('b'), 0x1F600]
  assert counts.tolist() == [1, 2, 1]
  assert len(utf8.count_characters('')[0]) == 0


def test_strict_names_the_offset():
  assert utf8.decode_strict(TEXT.encode()) == TEXT
  with pytest.raises(UserError, match=r'a\.txt .*0xFF at offset 3;'):
    utf8.decode_strict('aé'.encode() + b'\xff', 'a.txt')


@given(nearly_utf8)
def test_byte_offsets(data):
  text = data.decode('utf-8', 'surrogateescape')
  offsets = [len(utf8.to_bytes(text[:i])) for i in range(len(text))]
  assert utf8.byte_offsets(text).tolist() == offsets


def test_byte_offsets_of_a_lone_surrogate():
  assert utf8.byte_offsets('a\ud800b\udcffc').tolist() == [0, 1, 4, 5, 6]
