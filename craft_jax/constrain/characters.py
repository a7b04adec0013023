r"""The sets of characters that `\d`, `\w`, `\s` and `\p{..}` stand for."""

import functools
import unicodedata

import numpy as np

from craft_jax.constrain.intervals import Intervals
from craft_jax.data.text.utf8 import MAX_CODE_POINT

CATEGORIES = (
  'Lu', 'Ll', 'Lt', 'Lm', 'Lo', 'Mn', 'Mc', 'Me', 'Nd', 'Nl', 'No',
  'Pc', 'Pd', 'Ps', 'Pe', 'Pi', 'Pf', 'Po', 'Sm', 'Sc', 'Sk', 'So',
  'Zs', 'Zl', 'Zp', 'Cc', 'Cf', 'Cs', 'Co', 'Cn',
)  # fmt: skip
# As written: a category, or its group.
NAMES = (*CATEGORIES, *dict.fromkeys(name[0] for name in CATEGORIES))


@functools.lru_cache(maxsize=4)
def shorthand(letter: str) -> Intervals:
  """The set of `d`, `w` or `s`, as Python's `re` has it for text."""
  characters = np.arange(MAX_CODE_POINT + 1, dtype='<u4').view('<U1')
  if letter == 'd':
    return _where(np.strings.isdecimal(characters))
  if letter == 's':
    return _where(np.strings.isspace(characters))
  return _where(np.strings.isalnum(characters) | (characters == '_'))


@functools.lru_cache(maxsize=64)
def category(name: str) -> Intervals:
  """The code points of a general category (`Lu`) or of its group (`L`).

  Of the version of Unicode that Python's `unicodedata` has.
  """
  wanted = [k for k, known in enumerate(CATEGORIES) if known.startswith(name)]
  return _where(np.isin(_category_of(), wanted))


@functools.cache
def _category_of() -> np.ndarray:
  """Index into `CATEGORIES` of each code point; takes about 0.1 s, once."""
  index = {name: k for k, name in enumerate(CATEGORIES)}
  names = map(unicodedata.category, map(chr, range(MAX_CODE_POINT + 1)))
  return np.fromiter(map(index.__getitem__, names), np.uint8)


def _where(member: np.ndarray) -> Intervals:
  """The indices at which a 1-D array of bool is true."""
  edges = np.flatnonzero(np.diff(member, prepend=False, append=False)).tolist()
  return tuple((a, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True))
