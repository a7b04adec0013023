"""Observations for a scaling law: size, data, cost and last loss of runs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from craft_jax.errors import UserError
from craft_jax.runs import compare, metric_table
from craft_jax.runs.listing import Run
from craft_jax.runs.scaling import law as law_lib
from craft_jax.runs.scaling.law import Cost, Law, Split

LEAST_POINTS, LEAST_VALUES = 6, 3
_FEW_POINTS = 9  # fewer give intervals that are too narrow
# Beyond this correlation of log N and log D the two terms are told apart by
# the noise alone.
_TOGETHER = 0.97
_PASSES = 4.0  # more over a text teach less than new text (arXiv:2305.16264)
_FAR = 10.0  # times the largest run: an extrapolation
# What a study of sizes and lengths changes; other differences are noted.
_MAY_DIFFER = frozenset({
  'seed', 'model.width', 'model.depth', 'model.num_heads',
  'model.num_kv_heads', 'model.mlp_width', 'train.steps', 'train.batch_size',
  'train.accumulate', 'optim.learning_rate', 'optim.warmup_steps',
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Points:
  """Finished runs, one entry each.

  Attributes:
    runs: they.
    metric: what `loss` is.
    params: N, all parameters.
    tokens: D, tokens read, each time that they were.
    flops_per_token: of training.
    loss: at the last step.
    groups: runs with the same N and D share a number.
    notes: what to bear in mind.
  """

  runs: Sequence[Run]
  metric: str
  params: np.ndarray
  tokens: np.ndarray
  flops_per_token: np.ndarray
  loss: np.ndarray
  groups: np.ndarray
  notes: Sequence[str]

  @property
  def flops(self) -> np.ndarray:
    """FLOPs of training of each run."""
    return self.flops_per_token * self.tokens


@dataclasses.dataclass(frozen=True)
class Study:
  """A law, how sure it is, and what it says of a budget.

  Attributes:
    points: what it is fitted to.
    law: the fit.
    draws: of the bootstrap.
    cost: FLOPs by size.
    flops: the budget.
    best: how to spend it.
    splits: by draw.
    notes: of the points and of the answer.
  """

  points: Points
  law: Law
  draws: Sequence[Law]
  cost: Cost
  flops: float
  best: Split
  splits: Sequence[Split]
  notes: Sequence[str]

  @property
  def errors(self) -> np.ndarray:
    """The relative error of the law at each run."""
    points = self.points
    return self.law.loss(points.params, points.tokens) / points.loss - 1


def collect(runs: Sequence[Run], metric: str = 'val_loss') -> Points:
  """The finished runs as points.

  Only the last evaluation of a run counts: at those before it the schedule
  had not lowered the learning rate yet, so that a shorter run would have been
  better there.

  Args:
    runs: any; those that have not finished are left out, with a note.
    metric: of an evaluation, lower being better.

  Raises:
    UserError: too few, too much alike, or of different texts.
  """
  done = [run for run in runs if run.counts]
  notes = []
  if len(done) < len(runs):
    notes.append(
      f'left out, not finished: {_some([r for r in runs if r not in done])}'
    )
  if metric_table.find(metric).higher:
    raise UserError(
      f'--metric={metric} rises as models improve; the law is of a loss, such '
      'as val_loss or val_bpb'
    )
  rows = [(run, row) for run in done if (row := _row(run, metric))]
  if len(rows) < len(done):
    kept = [run for run, _ in rows]
    notes.append(
      f'left out, no {metric} at the last step: '
      f'{_some([r for r in done if r not in kept])}'
    )
  if not rows:
    raise UserError(
      f'no finished run with a {metric}; a scaling law needs {LEAST_POINTS} of '
      f'{LEAST_VALUES} sizes and {LEAST_VALUES} lengths: craft runs list shows '
      'those there are'
    )
  kept = [run for run, _ in rows]
  params, tokens, cost, loss = np.array([row for _, row in rows]).T
  seen: dict[tuple[float, float], int] = {}
  groups = [
    seen.setdefault(pair, len(seen))
    for pair in zip(params, tokens, strict=True)
  ]
  notes += _differences(kept) + _passes(kept, tokens)
  points = Points(
    kept, metric, params, tokens, cost, loss, np.array(groups), notes
  )
  _check(points)
  if len(seen) < _FEW_POINTS:
    notes.append(
      f'{len(seen)} points are few for {law_lib.CONSTANTS} constants: the '
      'intervals are too narrow'
    )
  return points


def study(
  points: Points, flops: float | None = None, draws: int = 200
) -> Study:
  """Fits the law and spends the budget.

  Args:
    points: of the runs.
    flops: the budget; by default ten times the largest run's.
    draws: of the bootstrap.
  """
  law = law_lib.fit(points.params, points.tokens, points.loss)
  laws = law_lib.bootstrap(
    points.params, points.tokens, points.loss, points.groups, draws
  )
  cost = law_lib.cost_of(points.params, points.flops_per_token)
  flops = flops or 10 * float(points.flops.max())
  best = law_lib.best_split(law, cost, flops)
  return Study(
    points,
    law,
    laws,
    cost,
    flops,
    best,
    [law_lib.best_split(draw, cost, flops) for draw in laws],
    [*points.notes, *_reach(points, flops, best)],
  )


def _row(run: Run, metric: str) -> tuple[float, float, float, float] | None:
  """N, D, FLOPs per token and the metric at the last step, if it tells."""
  final, steps = run.digest.final, run.settings.get('train.steps')
  parts: list[float | None] = [
    run.facts['params'], run.unit('tokens_per_step'), steps,
    run.unit('flops_per_token'), final.get(metric),
  ]  # fmt: skip
  known = [float(part) for part in parts if part]
  if final.get('step') != steps or len(known) < len(parts):
    return None
  params, per_step, steps, flops, loss = known
  return params, per_step * steps, flops, loss


def _check(points: Points) -> None:
  texts = {run.metadata.get('corpus_fingerprint') for run in points.runs}
  if len(texts) > 1:
    raise UserError(
      f'the runs read {len(texts)} different texts or vocabularies, which have '
      'a law each; choose with --where, such as '
      '\'data.path=="my.txt"\', or give other folders'
    )
  counts = {
    'points (runs that differ in size or length)': (
      int(points.groups.max()) + 1, LEAST_POINTS,
    ),
    'sizes': (len(set(points.params)), LEAST_VALUES),
    'lengths': (len(set(points.tokens)), LEAST_VALUES),
  }  # fmt: skip
  for name, (count, least) in counts.items():
    if count < least:
      raise UserError(
        f'{count} {name} in {len(points.runs)} finished runs; a scaling law '
        f'needs at least {least}: vary model.width and train.steps'
      )
  logs = np.log([points.params, points.tokens])
  if abs(np.corrcoef(logs)[0, 1]) > _TOGETHER:
    raise UserError(
      'size and length of the runs change together, so that nobody can tell '
      'which of them lowers the loss; add a small model trained long and a '
      'large one trained briefly'
    )


def _differences(runs: Sequence[Run]) -> list[str]:
  differing = compare.differing_settings(runs)
  names = sorted(set(differing) - _MAY_DIFFER - compare.free_settings())
  if not names:
    return []
  return [
    f'the runs also differ in {", ".join(names)}; the law takes that for an '
    'effect of size or length (choose with --where)'
  ]


def _passes(runs: Sequence[Run], tokens: np.ndarray) -> list[str]:
  sizes = [run.metadata.get('train_tokens') for run in runs]
  if not all(sizes):
    return []
  passes = tokens / np.array(sizes, float)
  if passes.max() <= _PASSES:
    return []
  return [
    f'up to {passes.max():.3g} passes over the text: what is read again '
    'teaches less than what is new, and the law does not know'
  ]


def _reach(points: Points, flops: float, best: Split) -> list[str]:
  notes = []
  times = flops / points.flops.max()
  if times > _FAR:
    notes.append(
      f'{times:.3g} times the FLOPs of the largest run: a far extrapolation'
    )
  for name, value, known in (
    ('parameters', best.params, points.params),
    ('tokens', best.tokens, points.tokens),
  ):
    if not known.min() / 2 <= value <= known.max() * 2:
      notes.append(
        f'the best number of {name} lies outside of the runs, which have '
        f'{known.min():,.0f} to {known.max():,.0f}'
      )
  return notes


def _some(runs: Sequence[Run]) -> str:
  return ', '.join(run.name for run in runs[:4]) + (
    f' and {len(runs) - 4} more' if len(runs) > 4 else ''
  )
