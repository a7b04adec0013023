"""What training and evaluation read: a corpus and its splits."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from craft_jax.data.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Split:
  """One part of a corpus.

  Attributes:
    name: 'train', 'valid' or 'test'.
    tokens: ids, 1-D uint8 or uint16, read-only; BOS between documents.
    num_chars: characters, separators excluded.
    num_bytes: UTF-8 bytes of the text, separators excluded.
    documents: how many, a document cut in two counts in both parts.
  """

  name: str
  tokens: np.ndarray
  num_chars: int
  num_bytes: int
  documents: int


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What training and evaluation read.

  Attributes:
    train: the split that vocabularies are made from.
    valid: the split that is evaluated during training.
    test: or None.
    vocabulary: of the tokens.
    fingerprint: sha256 over the tokens of every split (the cleaned text, as
      tokens), their counts and the vocabulary.
    valid_fingerprint: sha256 over the documents of the validation split as
      UTF-8, the same for every vocabulary.
    withheld: '' or why bits per byte cannot be given.
    documents: how many there are in all parts together.
    summary: one line for people.
    report: a row per cleaning step: name, changed, lossy, example.
    notes: what the reader should know, one sentence each.
    folder: where the prepared arrays are.
    reused: whether they were there before.
  """

  train: Split
  valid: Split
  test: Split | None
  vocabulary: Vocabulary
  fingerprint: str
  valid_fingerprint: str
  withheld: str
  documents: int
  summary: str
  report: list[dict[str, Any]]
  notes: tuple[str, ...]
  folder: pathlib.Path
  reused: bool

  @property
  def splits(self) -> tuple[Split, ...]:
    """The parts that there are."""
    parts = (self.train, self.valid, self.test)
    return tuple(part for part in parts if part is not None)
