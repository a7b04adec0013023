"""Cutting documents into training, validation and test parts."""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import TypeVar

from craft_jax.data.sources import Document
from craft_jax.errors import UserError

Text = str | bytes
Named = tuple[str, Text]  # a document's name and its cleaned text
T = TypeVar('T')


def num_characters(text: Text) -> int:
  """Code points; of bytes that are not UTF-8, the bytes."""
  if isinstance(text, str):
    return len(text)
  try:
    return len(text.decode('utf-8'))
  except UnicodeDecodeError:
    return len(text)


def cut(text: Text, position: int) -> tuple[Text, Text]:
  """`text` before and after a number of characters (`num_characters`)."""
  if isinstance(text, bytes):
    with contextlib.suppress(UnicodeDecodeError):
      position = len(text.decode('utf-8')[:position].encode('utf-8'))
  return text[:position], text[position:]


def by_fraction(
  documents: Sequence[Named], valid: float, test: float
) -> dict[str, list[Named]]:
  """Cuts the text at two places, counted in characters.

  Of n characters, training takes the first int(n (1 - valid - test)), which
  is nanoGPT's rule, the test what follows int(n (1 - test)), and validation
  what is between. A document may be cut in two; no character is.

  Raises:
    UserError: a part that should hold text would be empty.
  """
  total = sum(num_characters(text) for _, text in documents)
  head, rest = _divide(documents, int(total * (1 - valid - test)))
  before = sum(num_characters(text) for _, text in head)
  middle, tail = _divide(rest, int(total * (1 - test)) - before)
  parts = {'train': head, 'valid': middle} | ({'test': tail} if test else {})
  for name, part in parts.items():
    if not part:
      raise UserError(
        f'{total} characters leave the {name} part empty at '
        f'data.valid_fraction={valid}, data.test_fraction={test}; give more '
        'text or change the fractions'
      )
  return parts


def _divide(
  documents: Sequence[Named], position: int
) -> tuple[list[Named], list[Named]]:
  """The documents before and after `position` characters; none is empty."""
  for i, (name, text) in enumerate(documents):
    length = num_characters(text)
    if position < length:
      before, after = cut(text, position)
      head = [*documents[:i], *([(name, before)] if before else [])]
      return head, [(name, after), *documents[i + 1 :]]
    position -= length
  return list(documents), []


def by_file(
  documents: Sequence[Document], valid: float, test: float
) -> dict[str, list[Document]]:
  """Gives whole documents to parts, by a hash of their names.

  A document's place depends on its own name, so adding files moves none of
  the others, unless a part had no document: it then takes the one that came
  closest, and needs at least one for each part.

  Raises:
    UserError: fewer documents than parts.
  """
  place = {d.name: _place(d.name) for d in documents}
  parts: dict[str, list[Document]] = {'train': [], 'valid': []}
  if test:
    parts['test'] = []
  if len(documents) < len(parts):
    raise UserError(
      f'data.split=file needs at least {len(parts)} documents, one for each '
      f'part, not {len(documents)}; use data.split=fraction'
    )
  for document in documents:
    if place[document.name] < valid:
      parts['valid'].append(document)
    elif place[document.name] < valid + test:
      parts['test'].append(document)
    else:
      parts['train'].append(document)
  for name in parts:
    if not parts[name]:
      largest = max(parts, key=lambda other: len(parts[other]))
      pick = max if name == 'train' else min
      moved = pick(parts[largest], key=lambda d: place[d.name])
      parts[largest].remove(moved)
      parts[name].append(moved)
  return parts


def _place(name: str) -> float:
  """A number in [0, 1) that depends on the name alone."""
  digest = hashlib.sha256(name.encode('utf-8', 'surrogateescape')).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64
