"""Greedy completions of the prompts of a split of pairs, and their metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from craft_jax.data.pairs import Pair
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference import task_metrics
from craft_jax.inference.predict import Predictor, request_of, slots_for
from craft_jax.model.protocol import Model
from craft_jax.types import Params

_NUM_EDITS = 20


def subset(pairs: Sequence[Pair], rows: int | None) -> Sequence[Pair]:
  """A fixed random choice of at most so many pairs; None takes all."""
  if rows is None or rows >= len(pairs):
    return pairs
  chosen = np.random.default_rng(0).permutation(len(pairs))[:rows]
  return [pairs[i] for i in np.sort(chosen)]


def figures_of(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  pairs: Sequence[Pair],
  *,
  slots: int = 64,
  intervals: bool = False,
  edits: bool = False,
  tick: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
  """Completes the prompts of pairs and compares with their completions.

  Args:
    model: the model.
    params: its parameters, on devices of this process.
    vocabulary: its tokens.
    pairs: prompts with the completions that are right.
    slots: completions written at once, at most.
    intervals: add the intervals of the metrics.
    edits: add the most frequent edits.
    tick: called after each completion.

  Returns:
    The metrics of `task_metrics.summary` and, if requested, `edits`, the most
    frequent ones as in `task_metrics.most_frequent`.
  """
  predictor = Predictor(
    model,
    params,
    vocabulary,
    request_of('pairs', model.context, {}),
    documents=True,
    data_format='pairs',
    slots=min(slots, slots_for(len(pairs))),
  )
  rows = (predictor.prepare(i, pair.prompt) for i, pair in enumerate(pairs))
  tally = task_metrics.Tally()
  for i, (best, *_) in enumerate(predictor.completions(rows)):
    tally.add(i + 1, pairs[i].prompt, pairs[i].completions, best.text)
    tick()
  found: dict[str, Any] = task_metrics.summary(tally.scores, intervals)
  if edits:
    found['edits'] = task_metrics.most_frequent(tally.counts, _NUM_EDITS)
  return found
