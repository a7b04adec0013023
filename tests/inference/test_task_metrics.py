"""Exact match, CER, WER and edits, against slow definitions."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_jax.inference import task_metrics
from craft_jax.inference.task_metrics import Edit, Tally, score, summary

_TEXTS = st.text('ab ß\n🙂', max_size=9)
_ROWS = st.lists(
  st.tuples(_TEXTS, st.lists(_TEXTS, min_size=1, max_size=3)), max_size=5
)


def _distance(a, b):
  """Levenshtein distance by its recurrence, row by row."""
  before = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    now = [i]
    for j, y in enumerate(b, 1):
      now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
    before = now
  return before[-1]


@given(_TEXTS, st.lists(_TEXTS, min_size=1, max_size=3))
def test_a_score_is_of_the_best_reference(completion, references):
  found = score(completion, references)
  assert found.exact == (completion in references)
  distances = [_distance(r, completion) for r in references]
  assert found.edits == min(distances)
  best = [len(r) for r, d in zip(references, distances, strict=True)
          if d == min(distances)]  # fmt: skip
  assert found.chars == max(best) == len(references[found.reference])
  words = [r.split() for r in references]
  distances = [_distance(w, completion.split()) for w in words]
  assert found.word_edits == min(distances)
  assert found.words == max(
    len(w) for w, d in zip(words, distances, strict=True) if d == min(distances)
  )


@given(_ROWS)
def test_a_summary_divides_sums(rows):
  scores = [score(*row) for row in rows]
  found = summary(scores)
  assert found['task_rows'] == len(rows)
  for name, number, count in (
    ('exact_match', sum(s.exact for s in scores), len(scores)),
    ('cer', sum(s.edits for s in scores), sum(s.chars for s in scores)),
    ('wer', sum(s.word_edits for s in scores), sum(s.words for s in scores)),
  ):
    assert found[name] == (pytest.approx(number / count) if count else None)


@given(_TEXTS, _TEXTS)
def test_an_alignment_has_both_texts(reference, completion):
  pieces = task_metrics.alignment(reference, completion)
  had = [p.reference if isinstance(p, Edit) else p for p in pieces]
  has = [p.completion if isinstance(p, Edit) else p for p in pieces]
  assert ''.join(had) == reference and ''.join(has) == completion
  edits = [p for p in pieces if isinstance(p, Edit)]
  most = sum(max(len(e.reference), len(e.completion)) for e in edits)
  assert most >= _distance(reference, completion)
  kinds = [isinstance(p, Edit) for p in pieces]
  assert (True, True) not in list(itertools.pairwise(kinds))


def test_intervals_hold_the_metric_and_repeat():
  rng = np.random.default_rng(3)
  scores = [score('abcd'[: rng.integers(5)], ['abcd']) for _ in range(60)]
  found = summary(scores, intervals=True)
  for name in task_metrics.METRICS:
    assert found[f'{name}_low'] < found[name] < found[f'{name}_high']
  assert found == summary(scores, intervals=True)
  one = summary(scores[:1], intervals=True)
  assert one['cer_low'] == one['cer'] == one['cer_high']
  assert summary([], intervals=True)['cer'] is None


def test_neighbouring_edits_are_one():
  assert task_metrics.alignment('straße', 'strasse') == [
    'stra', Edit('ß', 'ss'), 'e'
  ]  # fmt: skip
  assert task_metrics.show_alignment('café', 'caffe') == 'caf[é→fe]'
  assert task_metrics.show_alignment('ab', 'a') == 'a[b→∅]'
  assert task_metrics.show_alignment('a', 'ba') == '[∅→b]a'


def test_a_tally_counts_edits_and_keeps_the_worst():
  tally = Tally(most=2)
  tally.add(1, 'p', ['straße'], 'strasse')
  tally.add(2, 'q', ['ß', 'x'], 'ss')
  tally.add(3, 'r', ['né', 'e'], 'ne')
  tally.add(4, 's', ['right'], 'right')
  assert tally.counts == collections.Counter(
    {Edit('ß', 'ss'): 2, Edit('é', 'e'): 1}
  )
  assert task_metrics.most_frequent(tally.counts, 1) == [
    {'reference': 'ß', 'completion': 'ss', 'count': 2}
  ]
  assert [wrong.minus_row for wrong in tally.worst] == [-2, -3]
  assert tally.worst[0].to_json()['alignment'] == '[ß→ss]'
  assert summary(tally.scores)['exact_match'] == 0.25
