"""Metrics of completions against references: exact match, CER, WER, edits.

Texts are compared as they are, by code points: nothing is normalised, no case
folded, no space stripped.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

METRICS = ('exact_match', 'cer', 'wer')
NOTHING = '∅'  # what an insertion replaces, and what a deletion leaves
_RESAMPLES = 1000


class Score(NamedTuple):
  """A completion compared with its references.

  Attributes:
    exact: 1 if it equals one of them, else 0.
    edits: Levenshtein distance in characters (code points) to the reference
      that has the least, the longest of several.
    chars: characters of that reference.
    word_edits: distance in words to the reference that has the least in
      words, the longest of several. Words are split at whitespace.
    words: words of that reference.
    reference: index of the reference of `edits`.
  """

  exact: int
  edits: int
  chars: int
  word_edits: int
  words: int
  reference: int


def score(completion: str, references: Sequence[str]) -> Score:
  """Compares a completion with its references, of which there is at least one.

  Each metric takes the reference that is best for it.
  """
  edits, minus_chars, index = min(
    (Levenshtein.distance(reference, completion), -len(reference), i)
    for i, reference in enumerate(references)
  )
  written = completion.split()
  word_edits, minus_words = min(
    (Levenshtein.distance(words, written), -len(words))
    for words in map(str.split, references)
  )
  exact = int(completion in references)
  return Score(exact, edits, -minus_chars, word_edits, -minus_words, index)


def summary(
  scores: Sequence[Score], intervals: bool = False
) -> dict[str, float | None]:
  """Metrics of rows: sums over rows divided by sums, not means of rates.

  Args:
    scores: of the rows.
    intervals: add `NAME_low` and `NAME_high`: the 2.5th and 97.5th percentile
      of the metric over 1,000 resamples of the rows with a fixed seed
      (percentile bootstrap, Efron 1979).

  Returns:
    `exact_match` (share of rows), `cer` and `wer` (edits per character and per
    word of the references; above 1 where more is inserted than was there) and
    `task_rows`. A metric is None without rows, or where the references have
    no words.
  """
  sums_of_rows = np.array([row[:5] for row in scores], np.int64).reshape(-1, 5)
  found: dict[str, float | None] = {
    name: None if np.isnan(value) else float(value)
    for name, value in zip(
      METRICS, _rates(sums_of_rows.sum(0), len(scores)), strict=True
    )
  }
  found['task_rows'] = len(scores)
  if intervals and scores:
    rng = np.random.default_rng(0)
    size = len(scores)
    drawn = [
      _rates(sums_of_rows[rng.integers(size, size=size)].sum(0), size)
      for _ in range(_RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    for i, name in enumerate(METRICS):
      if found[name] is not None:
        found[f'{name}_low'] = float(low[i])
        found[f'{name}_high'] = float(high[i])
  return found


def _rates(sums: np.ndarray, rows: int) -> np.ndarray:
  """`METRICS` of the summed columns of `Score`; NaN where nothing counted."""
  exact, edits, chars, word_edits, words = sums
  numbers = np.array([exact, edits, word_edits], float)
  counts = np.array([rows, chars, words], float)
  return np.where(counts > 0, numbers / np.maximum(counts, 1), np.nan)


class Edit(NamedTuple):
  """A difference between a reference and a completion.

  Attributes:
    reference: what the reference has; '' for an insertion.
    completion: what the completion has in its place; '' for a deletion.
  """

  reference: str
  completion: str

  def __str__(self) -> str:
    return f'{self.reference or NOTHING}→{self.completion or NOTHING}'


def alignment(reference: str, completion: str) -> list[str | Edit]:
  """A reference with its edits in place: equal pieces and edits in turn.

  An alignment of least Levenshtein distance. Neighbouring edits are one: `ß`
  for `ss` is a single `Edit`.
  """
  pieces: list[str | Edit] = []
  for step in Levenshtein.opcodes(reference, completion):
    had = reference[step.src_start : step.src_end]
    has = completion[step.dest_start : step.dest_end]
    if step.tag == 'equal':
      pieces.append(had)
    elif pieces and isinstance(pieces[-1], Edit):
      pieces[-1] = Edit(pieces[-1].reference + had, pieces[-1].completion + has)
    else:
      pieces.append(Edit(had, has))
  return pieces


def show_alignment(reference: str, completion: str) -> str:
  """An alignment in a line: `stra[ß→ss]e`."""
  return ''.join(
    f'[{piece}]' if isinstance(piece, Edit) else piece
    for piece in alignment(reference, completion)
  )


def count_edits(pairs: Iterable[tuple[str, str]]) -> collections.Counter[Edit]:
  """How often each edit occurs in pairs of reference and completion."""
  return collections.Counter(
    piece
    for reference, completion in pairs
    for piece in alignment(reference, completion)
    if isinstance(piece, Edit)
  )


def most_frequent(
  counts: collections.Counter[Edit], most: int
) -> list[dict[str, Any]]:
  """The most frequent edits: `reference`, `completion`, `count` of each."""
  order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return [edit._asdict() | {'count': count} for edit, count in order[:most]]


@dataclasses.dataclass(frozen=True, order=True)
class Wrong:
  """A row whose completion is not one of its references; the worst is greatest.

  Attributes:
    rate: character edits per character of the reference.
    edits: character edits.
    minus_row: the row, counted from 1, negative so that of equals the first is
      the worst.
    prompt: of the row.
    reference: the nearest one.
    completion: of the row.
  """

  rate: float
  edits: int
  minus_row: int
  prompt: str
  reference: str
  completion: str

  def to_json(self) -> dict[str, Any]:
    """The row for JSON: `row`, texts, `edits`, `cer` and `alignment`."""
    return {
      'row': -self.minus_row,
      'prompt': self.prompt,
      'reference': self.reference,
      'completion': self.completion,
      'edits': self.edits,
      'cer': self.rate,
      'alignment': show_alignment(self.reference, self.completion),
    }


class Tally:
  """Scores of rows as they come, their edits and the worst of them.

  Attributes:
    scores: of all rows.
    counts: how often each edit occurs, against the nearest reference.
    worst: rows that are wrong, the worst first, at most `most`.
  """

  def __init__(self, most: int = 0):
    """Starts without rows; keeps the `most` worst."""
    self.scores: list[Score] = []
    self.counts: collections.Counter[Edit] = collections.Counter()
    self.worst: list[Wrong] = []
    self._most = most

  def add(
    self, row: int, prompt: str, references: Sequence[str], completion: str
  ) -> None:
    """Adds a row, counted from 1."""
    found = score(completion, references)
    self.scores.append(found)
    if not found.edits:
      return
    reference = references[found.reference]
    self.counts += count_edits([(reference, completion)])
    wrong = Wrong(
      found.edits / max(found.chars, 1), found.edits, -row, prompt, reference,
      completion,
    )  # fmt: skip
    self.worst = sorted([*self.worst, wrong], reverse=True)[: self._most]
