"""Whether a group of runs is better than the next, beyond seed noise."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from craft_jax.runs import metric_table
from craft_jax.runs.listing import Run

# Two-sided 95 % quantiles of Student's t by degrees of freedom; past the table
# the next lower entry is taken, which errs on the careful side.
_T95 = {
  1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365,
  8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042,
  60: 2.000, 120: 1.980,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
  """A run and its results.

  Attributes:
    run: the run.
    final: the metric at the last evaluation, or None.
    best: at its best evaluation, or None.
    best_step: where that was.
  """

  run: Run
  final: float | None
  best: float | None
  best_step: int | None


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in their seed alone (and in what is only reported).

  Attributes:
    results: of its runs.
    label: a short name.
  """

  results: Sequence[Result]
  label: str

  @property
  def values(self) -> list[float]:
    """The best by seed, of finished runs; one seed is one sample: its mean."""
    by_seed: dict[Any, list[float]] = {}
    for r in self.results:
      if r.best is not None and r.run.counts:
        by_seed.setdefault(r.run.settings.get('seed'), []).append(r.best)
    return [statistics.fmean(values) for values in by_seed.values()]

  @property
  def mean(self) -> float | None:
    """Mean of `values`; None where no finished run was evaluated."""
    return statistics.fmean(self.values) if self.values else None

  @property
  def deviation(self) -> float | None:
    """Standard deviation of `values`; None where there are fewer than two."""
    return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The best group against the next one.

  Attributes:
    better: index of the group, or None where nothing can be said.
    other: index of the next one.
    difference: between their means, positive.
    exceeds: whether it exceeds the spread of the seeds; None if no group has
      two seeds.
    margin: the difference that would just exceed it (95 %).
  """

  better: int | None
  other: int | None = None
  difference: float = math.nan
  exceeds: bool | None = None
  margin: float | None = None


def judge(groups: Sequence[Group], metric: str) -> Verdict:
  """The best group against the next, by the mean of their runs' best."""
  means = [(g.mean, i) for i, g in enumerate(groups)]
  known = [(mean, i) for mean, i in means if mean is not None]
  if len(known) < 2:
    return Verdict(None)
  known.sort(reverse=metric_table.find(metric).higher is True)
  (best, better), (second, other) = known[:2]
  difference = abs(best - second)
  margin = _margin(groups[better].values, groups[other].values)
  exceeds = None if margin is None else difference > margin
  return Verdict(better, other, difference, exceeds, margin)


def _margin(a: Sequence[float], b: Sequence[float]) -> float | None:
  """The difference of means that chance exceeds once in 20 times.

  Welch's test (Biometrika 34, 1947) where both have two seeds or more; where
  one has a single seed, that one is taken to spread as the other does.
  """
  sizes, spreads = (len(a), len(b)), []
  for values in (a, b):
    if len(values) > 1:
      spreads.append(statistics.variance(values))
  if not spreads:
    return None
  if len(spreads) == 1:
    freedom = float(max(sizes) - 1)
    error = spreads[0] * (1 / sizes[0] + 1 / sizes[1])
  else:
    parts = [v / n for v, n in zip(spreads, sizes, strict=True)]
    error = sum(parts)
    below = sum(p * p / (n - 1) for p, n in zip(parts, sizes, strict=True))
    freedom = error * error / below if below else float(sum(sizes) - 2)
  row = max(k for k in _T95 if k <= max(freedom, 1))
  return _T95[row] * math.sqrt(error)
