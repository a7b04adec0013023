"""Character class, characters and bytes of each token, for evaluation."""

import unicodedata

import numpy as np

from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary

CLASS_NAMES = ('letter', 'digit', 'space', 'punctuation', 'other', 'special')
LETTER, DIGIT, SPACE, PUNCTUATION, OTHER, SPECIAL = range(len(CLASS_NAMES))

# By Unicode general category; a full name such as 'Sm' takes precedence over
# its first letter. Marks count as letters; emoji (So) and the rest as 'other'.
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
  """Class of each code point, as an index into `CLASS_NAMES`.

  Args:
    codes: code points, integers of any shape.

  Returns:
    int8 in the same shape.
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
  """Class of every token as an index into `CLASS_NAMES`, int8 `[V]`.

  Bytes below 0x80 have the class of their ASCII character; others are 'other'.
  """
  if vocabulary.kind == 'byte':
    tokens = np.full(256, OTHER, np.int8)
    tokens[:128] = character_classes(np.arange(128))
  else:
    tokens = character_classes(utf8.code_points(vocabulary.chars))
  specials = np.full(vocabulary.size - len(tokens), SPECIAL, np.int8)
  return np.concatenate([tokens, specials])


def sizes_of(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
  """Number of characters and of UTF-8 bytes per token, two int32 `[V]`.

  A byte counts as a character unless it is a continuation byte. UNK is one
  character of 0 bytes; other special tokens have neither.
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
