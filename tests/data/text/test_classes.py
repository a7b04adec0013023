"""Classes of characters."""

import unicodedata

import numpy as np
import pytest

from craft_jax.data.text.character_classes import (
  CLASS_NAMES,
  character_classes,
  classes_of,
  sizes_of,
)
from craft_jax.data.text.vocabulary import Vocabulary


def _name_of(character):
  return CLASS_NAMES[character_classes(np.array([ord(character)]))[0]]


@pytest.mark.parametrize(
  ('characters', 'name'),
  [
    ('azAZéßЖ中あ\u0301', 'letter'),
    ('0189٣५²', 'digit'),
    (' \t\n\r\x0b\x0c\x85\xa0\u2028\u3000', 'space'),
    ('!"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~«—€。', 'punctuation'),
    ('\x00\x1b\x7f\x9f\ud800\U0001f600\u200d\ufeff\ue000', 'other'),
  ],
)
def test_examples(characters, name):
  assert {_name_of(c) for c in characters} == {name}


def test_ascii_agrees_with_python():
  classes = classes_of(Vocabulary.byte())[:128]
  for code in range(128):
    character, name = chr(code), CLASS_NAMES[classes[code]]
    assert (name == 'letter') == character.isalpha()
    assert (name == 'digit') == character.isdigit()
    if name == 'space':
      assert character.isspace()
    if name == 'other':
      assert unicodedata.category(character) == 'Cc'


def test_byte_vocabulary():
  vocabulary = Vocabulary.byte()
  classes = classes_of(vocabulary)
  assert classes.shape == (vocabulary.size,) and classes.dtype == np.int8
  assert {CLASS_NAMES[c] for c in classes[128:256]} == {'other'}
  assert {CLASS_NAMES[c] for c in classes[256:]} == {'special'}
  assert {CLASS_NAMES[c] for c in classes[:128]} == {
    *['letter', 'digit', 'space', 'punctuation', 'other']
  }


def test_char_vocabulary_follows_its_ids():
  vocabulary = Vocabulary('char', ' e1.é\U0001f600')
  names = [CLASS_NAMES[c] for c in classes_of(vocabulary)]
  assert names == [
    *['space', 'letter', 'digit', 'punctuation', 'letter', 'other'],
    *['special'] * 4,
  ]


def test_shape_is_kept():
  codes = np.array([[65, 48, 32], [46, 0, 0x1F600]])
  assert character_classes(codes).tolist() == [[0, 1, 2], [3, 4, 4]]
  assert character_classes(codes[:0]).shape == (0, 3)


def test_sizes_count_characters_and_bytes():
  text = 'aé漢😀\n'
  chars, sizes = sizes_of(Vocabulary.byte())
  ids = list(text.encode())
  assert chars[ids].sum() == 5 and sizes[ids].sum() == len(ids)
  assert chars[256:].tolist() == [0, 0, 0, 1] and not sizes[256:].any()
  chars, sizes = sizes_of(Vocabulary('char', text))
  assert chars.tolist() == [1] * 5 + [0, 0, 0, 1]
  assert sizes.tolist() == [1, 2, 3, 4, 1, 0, 0, 0, 0]
