"""A corpus, its splits and its facts, as training and evaluation use them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from craft_jax.data.text.cleaning import StepReport
from craft_jax.data.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Split:
  """One part of a corpus.

  Attributes:
    name: 'train', 'valid' or 'test'.
    tokens: token ids, 1-D uint8 or uint16, read-only; BOS between documents,
      or packed pairs (`data.pairs`).
    num_chars: number of characters, without separators; of pairs, those of
      completions.
    num_bytes: number of UTF-8 bytes of that text.
    documents: number of documents, or of pairs; a document cut in two counts in
      both splits.
    learnt: number of targets with weight 1 in an epoch, if not all tokens.
  """

  name: str
  tokens: np.ndarray
  num_chars: int
  num_bytes: int
  documents: int
  learnt: int | None = None

  @property
  def num_learnt(self) -> int:
    """Tokens that training learns, to which the characters belong."""
    return len(self.tokens) if self.learnt is None else self.learnt


class Prepared(NamedTuple):
  """Token arrays of a corpus, before they are stored.

  Attributes:
    vocabulary: vocabulary of the token ids.
    arrays: tokens by split.
    counts: the other numbers of each `Split`.
    valid_texts: texts of the validation split.
    documents: number of documents in all splits together.
    report: a row per cleaning step.
    pairs: statistics of pairs as JSON values, or None.
  """

  vocabulary: Vocabulary
  arrays: dict[str, np.ndarray]
  counts: dict[str, dict[str, int]]
  valid_texts: Sequence[str | bytes]
  documents: int
  report: Sequence[StepReport]
  pairs: dict[str, Any] | None = None


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
    documents: number of documents, or of pairs, in all splits together.
    summary: one line for the user.
    report: a row per cleaning step: name, changed, lossy, example.
    notes: notes for the user, one sentence each.
    folder: folder of the prepared arrays.
    reused: whether the arrays were already in the cache.
    pairs: statistics of pairs, see `data.pair_corpus`; None of text.
    warnings: what makes results doubtful, one sentence each.
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
  pairs: dict[str, Any] | None = None
  warnings: tuple[str, ...] = ()

  @property
  def splits(self) -> tuple[Split, ...]:
    """The splits that exist, in order."""
    parts = (self.train, self.valid, self.test)
    return tuple(part for part in parts if part is not None)
