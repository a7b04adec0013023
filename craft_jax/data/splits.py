"""Divides documents into training, validation and test splits."""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from craft_jax.data.sources import Document
from craft_jax.errors import UserError

Text = str | bytes
Named = tuple[str, Text]  # a document's name and its cleaned text
T = TypeVar('T')


def num_characters(text: Text) -> int:
  """Number of code points, or of bytes if `text` is not UTF-8."""
  if isinstance(text, str):
    return len(text)
  try:
    return len(text.decode('utf-8'))
  except UnicodeDecodeError:
    return len(text)


def cut(text: Text, position: int) -> tuple[Text, Text]:
  """Cuts `text` after `position` characters, as `num_characters` counts."""
  if isinstance(text, bytes):
    with contextlib.suppress(UnicodeDecodeError):
      position = len(text.decode('utf-8')[:position].encode('utf-8'))
  return text[:position], text[position:]


def by_fraction(
  documents: Sequence[Named], valid: float, test: float
) -> dict[str, list[Named]]:
  """Splits the text by fractions of its n characters; a test of 0 makes none.

  Training gets the first int(n (1 - valid - test)) characters, as in nanoGPT,
  the test split those from int(n (1 - test)) on, and validation those between.
  Documents may be cut in two, but not characters.

  Raises:
    UserError: a split would be empty.
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
  """Divides documents after `position` characters, dropping empty pieces."""
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
  """Assigns whole documents to splits by a hash of their names.

  `valid` and `test` are expected fractions; a test of 0 makes none. Adding
  files does not move other documents, except that a split that would be empty
  gets the document with the closest hash.

  Raises:
    UserError: there are fewer documents than splits.
  """
  named = {d.name: d for d in documents}
  least = 3 if test else 2
  if len(documents) < least:
    raise UserError(
      f'data.split=file needs at least {least} documents, one for each '
      f'part, not {len(documents)}; use data.split=fraction'
    )
  parts = by_hash(named, valid, test)
  return {part: [named[n] for n in names] for part, names in parts.items()}


def by_hash(
  names: Iterable[str], valid: float, test: float
) -> dict[str, list[str]]:
  """Assigns distinct names to splits by their hashes.

  `valid` and `test` are expected fractions; a test of 0 makes none. A split
  that would be empty gets the name with the closest hash of the largest one,
  so there must be a name for each split.
  """
  place = {name: _place(name) for name in names}
  parts: dict[str, list[str]] = {'train': [], 'valid': []}
  if test:
    parts['test'] = []
  for name, at in place.items():
    if at < valid:
      parts['valid'].append(name)
    elif at < valid + test:
      parts['test'].append(name)
    else:
      parts['train'].append(name)
  for part in parts:
    if not parts[part]:
      largest = max(parts, key=lambda other: len(parts[other]))
      pick = max if part == 'train' else min
      moved = pick(parts[largest], key=place.__getitem__)
      parts[largest].remove(moved)
      parts[part].append(moved)
  return parts


def _place(name: str) -> float:
  """Hashes a name to a number in [0, 1)."""
  digest = hashlib.sha256(name.encode('utf-8', 'surrogateescape')).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64
