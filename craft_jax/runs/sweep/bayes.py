"""Bayesian search with pruning: pure functions of what is known so far.

Optuna is built anew from the runs for every question, so that there is no
state beside the run directories, and a sweep that goes on asks as if it had
never stopped.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from craft_jax.runs.layout import FAILED, FINISHED, RUNNING, STOPPED
from craft_jax.runs.sweep.space import Choice, Dimension, text_of
from craft_jax.runtime import extras

PRUNED = 'pruned'  # beside the states of a run
_RANDOM = 5  # trials before there is anything to learn from
_SEED_STRIDE = 100_003  # no trial of one seed draws as one of the next
_UNPRUNED = 3  # finished trials before one is given up


@dataclasses.dataclass(frozen=True)
class Past:
  """A trial and its results so far.

  Attributes:
    settings: of the dimensions, in JSON values.
    values: the metric by step.
    status: of the run, or `pruned`.
  """

  settings: Mapping[str, Any]
  values: Mapping[int, float]
  status: str


def check_installed() -> None:
  """Raises UserError where Optuna is not installed."""
  with extras.needed('--search=bayes', 'sweep'):
    import optuna  # noqa: F401


def suggest(
  space: Sequence[Dimension],
  history: Sequence[Past],
  seed: int,
  higher: bool = False,
) -> dict[str, Any]:
  """The settings of the next trial.

  Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), after a
  few random trials. Depends on nothing but the arguments.

  Args:
    space: what varies.
    history: all trials so far, in order.
    seed: of the search.
    higher: whether a higher metric is better.
  """
  study = _study(space, history, seed, higher)
  params = study.ask(_distributions(space)).params
  return {one.name: one.snapped(params[one.name]) for one in space}


def is_hopeless(
  space: Sequence[Dimension],
  history: Sequence[Past],
  trial: Past,
  higher: bool = False,
) -> bool:
  """Whether a trial is worse than the median of the finished trials.

  Its best value so far is compared with theirs up to the step of its last
  evaluation; False until three trials are finished.

  Args:
    space: what varies.
    history: the other trials.
    trial: the one that runs.
    higher: whether a higher metric is better.
  """
  study = _study(space, [*history, trial], 0, higher)
  last = study.get_trials(deepcopy=False)[-1]
  return bool(study.pruner.prune(study, last))


def _study(
  space: Sequence[Dimension], history: Sequence[Past], seed: int, higher: bool
) -> Any:
  import optuna

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  study = optuna.create_study(
    direction='maximize' if higher else 'minimize',
    sampler=optuna.samplers.TPESampler(
      n_startup_trials=_RANDOM,
      seed=(seed * _SEED_STRIDE + len(history)) % 2**32,
    ),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED),
  )
  distributions = _distributions(space)
  for past in history:
    study.add_trial(_as_optuna(space, past, distributions, higher))
  return study


def _as_optuna(
  space: Sequence[Dimension],
  past: Past,
  distributions: Mapping[str, Any],
  higher: bool,
) -> Any:
  from optuna.trial import TrialState, create_trial

  states = {
    FINISHED: TrialState.COMPLETE,
    STOPPED: TrialState.COMPLETE,  # at train.stop_at_step
    PRUNED: TrialState.PRUNED,
    FAILED: TrialState.FAIL,
    RUNNING: TrialState.RUNNING,
  }
  state = states[past.status]
  known = [value for value in past.values.values() if math.isfinite(value)]
  if state == TrialState.COMPLETE and not known:
    state = TrialState.FAIL
  best = (max if higher else min)(known) if known else None
  return create_trial(
    state=state,
    value=best if state == TrialState.COMPLETE else None,
    params={
      one.name: text_of(value) if isinstance(one, Choice) else value
      for one in space
      for value in [past.settings[one.name]]
    },
    distributions=dict(distributions),
    intermediate_values=dict(past.values),
  )


def _distributions(space: Sequence[Dimension]) -> dict[str, Any]:
  from optuna import distributions as d

  found: dict[str, Any] = {}
  for one in space:
    if isinstance(one, Choice):
      texts = [text_of(value) for value in one.values]
      found[one.name] = d.CategoricalDistribution(texts)
    elif one.whole:
      found[one.name] = d.IntDistribution(
        int(one.low), int(one.high), log=one.log, step=int(one.step or 1)
      )
    else:
      found[one.name] = d.FloatDistribution(
        float(one.low),
        float(one.high),
        log=one.log,
        step=None if one.step is None else float(one.step),
      )
  return found
