"""What each token is and counts for, for evaluation."""

import unicodedata

import numpy as np

from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary

CLASS_NAMES = ('letter', 'digit', 'space', 'punctuation', 'other', 'special')
LETTER, DIGIT, SPACE, PUNCTUATION, OTHER, SPECIAL = range(len(CLASS_NAMES))

# By Unicode general category, longest prefix first. Marks belong to the
# letters they sit on; emoji (So), format characters and the rest are 'other'.
_CLASS_OF_CATEGORY = {
  'L': LETTER,
  'M': LETTER,
  'N': DIGIT,
  'Z': SPACE,
  'P': PUNCTUATION,
  'Sm': PUNCTUATION,
  'Sc': PUNCTUATION,
  'Sk': PUNCTUATION,
}
_SPACE_CONTROLS = frozenset('\t\n\v\f\r\x85')


def character_classes(codes: np.ndarray) -> np.ndarray:
  """The class of each code point, an index into `CLASS_NAMES`.

  Args:
    codes: code points, integers of any shape.

  Returns:
    int8 of the same shape.
  """
  distinct, inverse = np.unique(codes, return_inverse=True)
  classes = np.array([_class_of(chr(code)) for code in distinct], np.int8)
  return classes[inverse].reshape(np.shape(codes))


def _class_of(character: str) -> int:
  if character in _SPACE_CONTROLS:
    return SPACE
  category = unicodedata.category(character)
  by_group = _CLASS_OF_CATEGORY.get(category[0], OTHER)
  return _CLASS_OF_CATEGORY.get(category, by_group)


def classes_of(vocabulary: Vocabulary) -> np.ndarray:
  """The class of every id, `[V]` int8, an index into `CLASS_NAMES`.

  A byte below 0x80 has the class of its ASCII character; the others are
  parts of characters and count as 'other'.
  """
  if vocabulary.kind == 'byte':
    tokens = np.full(256, OTHER, np.int8)
    tokens[:128] = character_classes(np.arange(128))
  else:
    tokens = character_classes(utf8.code_points(vocabulary.chars))
  specials = np.full(vocabulary.size - len(tokens), SPECIAL, np.int8)
  return np.concatenate([tokens, specials])


def sizes_of(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
  """Characters and UTF-8 bytes that each id adds to a text, two `[V]` int32.

  A byte adds a character unless it continues one. UNK stands for one
  character of unknown size; the other specials add neither.
  """
  if vocabulary.kind == 'byte':
    codes = np.arange(256)
    chars, num_bytes = (codes & 0xC0) != 0x80, np.ones(256)
  else:
    codes = utf8.code_points(vocabulary.chars)
    chars = np.ones(len(codes))
    num_bytes = 1 + (codes[:, None] >= [0x80, 0x800, 0x10000]).sum(1)
  rest = (0, vocabulary.size - len(codes))
  chars_V = np.pad(chars.astype(np.int32), rest)
  chars_V[vocabulary.unk] = 1
  return chars_V, np.pad(num_bytes.astype(np.int32), rest)
