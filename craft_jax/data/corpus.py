"""A corpus, its splits and its facts, as training and evaluation use them."""

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
    tokens: token ids, 1-D uint8 or uint16, read-only; BOS between documents.
    num_chars: number of characters, without separators.
    num_bytes: number of UTF-8 bytes of the text, without separators.
    documents: number of documents; one cut in two counts in both splits.
  """

  name: str
  tokens: np.ndarray
  num_chars: int
  num_bytes: int
  documents: int


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A prepared corpus.

  Attributes:
    train: training split; the vocabulary is built from it.
    valid: validation split, evaluated during training.
    test: test split, or None.
    vocabulary: vocabulary of the token ids.
    fingerprint: sha256 over the tokens of every split, their counts and the
      vocabulary.
    valid_fingerprint: sha256 over the validation documents as UTF-8, which does
      not depend on the vocabulary.
    withheld: reason why bits per byte cannot be reported, or ''.
    documents: number of documents in all splits together.
    summary: one line for the user.
    report: a row per cleaning step: name, changed, lossy, example.
    notes: notes for the user, one sentence each.
    folder: folder of the prepared arrays.
    reused: whether the arrays were already in the cache.
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
    """The splits that exist, in order."""
    parts = (self.train, self.valid, self.test)
    return tuple(part for part in parts if part is not None)
