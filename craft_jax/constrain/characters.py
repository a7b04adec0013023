r"""The character sets of `\d`, `\w`, `\s` and `\p{..}`."""

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
# Names in `\p{..}`: categories and their one-letter groups.
NAMES = (*CATEGORIES, *dict.fromkeys(name[0] for name in CATEGORIES))


@functools.lru_cache(maxsize=4)
def shorthand(letter: str) -> Intervals:
  """Code points of `d`, `w` or `s` as defined by Python's `re` for str."""
  characters = np.arange(MAX_CODE_POINT + 1, dtype='<u4').view('<U1')
  if letter == 'd':
    return _where(np.strings.isdecimal(characters))
  if letter == 's':
    return _where(np.strings.isspace(characters))
  return _where(np.strings.isalnum(characters) | (characters == '_'))


@functools.lru_cache(maxsize=64)
def category(name: str) -> Intervals:
  """Code points of a general category (`Lu`) or group of categories (`L`).

  The version of Unicode is that of Python's `unicodedata`.
  """
  wanted = [k for k, known in enumerate(CATEGORIES) if known.startswith(name)]
  return _where(np.isin(_category_of(), wanted))


@functools.cache
def _category_of() -> np.ndarray:
  """Index into `CATEGORIES` of each code point, uint8; takes about 0.1 s."""
  index = {name: k for k, name in enumerate(CATEGORIES)}
  names = map(unicodedata.category, map(chr, range(MAX_CODE_POINT + 1)))
  return np.fromiter(map(index.__getitem__, names), np.uint8)


def _where(member: np.ndarray) -> Intervals:
  """Intervals of indices at which a 1-D bool array is true."""
  edges = np.flatnonzero(np.diff(member, prepend=False, append=False)).tolist()
  return tuple((a, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True))
