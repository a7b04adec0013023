"""Characters that a vocabulary covers, and how JSON strings spell them."""

import functools

from craft_jax.constrain.intervals import (
  SCALARS,
  Intervals,
  complement,
  intersection,
  of_text,
)
from craft_jax.constrain.nodes import Node, Tokens, character, choice, concat
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

_SHORT = {
  '"': '"', '\\': '\\', '\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't',
}  # fmt: skip
_ESCAPED = of_text(''.join(_SHORT))
_CONTROLS: Intervals = ((0, 31),)
# Characters that a JSON string contains unescaped.
_PLAIN = intersection(SCALARS, complement(_ESCAPED))
_PLAIN = intersection(_PLAIN, complement(_CONTROLS))


def require(text: str, vocabulary: Vocabulary, place: str) -> None:
  """Checks that a vocabulary covers a text.

  Raises:
    UserError: it does not; names the first character that is missing.
  """
  for token in text:
    if vocabulary.kind == 'byte':
      missing = '\ud800' <= token <= '\udfff'
    else:
      missing = token not in vocabulary.chars
    if missing:
      raise UserError(
        f'{place}: the vocabulary cannot write {token!r} '
        f'(U+{ord(token):04X}); remove it'
      )


@functools.lru_cache(maxsize=1024)
def in_json(intervals: Intervals) -> Node:
  r"""A node that matches one character of a set within a JSON string.

  Each character has one spelling: itself, or a backslash and one of `"\bfnrt`.
  Other control characters and surrogates, which need `\u`, are excluded.
  """
  plain = Tokens(intersection(intervals, _PLAIN))
  letters = [
    letter
    for token, letter in _SHORT.items()
    if any(low <= ord(token) <= high for low, high in intervals)
  ]
  if not letters:
    return plain
  escape = concat(character('\\'), Tokens(of_text(''.join(letters))))
  return choice(plain, escape)
