"""Which run is better, by how much, what differs, and is it more than noise?"""

import dataclasses
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

from craft_jax.config import load as config_lib
from craft_jax.runs import curves, metric_table
from craft_jax.runs.listing import Run
from craft_jax.runs.verdict import Group, Result, Verdict, judge

# Besides settings, what may explain a difference.
_CIRCUMSTANCES = (
  'corpus_fingerprint', 'valid_fingerprint', 'vocabulary_fingerprint',
  'precision', 'git_commit',
  'device_kind', 'num_devices', 'parent',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Equal:
  """The groups where each had got equally far.

  Attributes:
    axis: a key of `curves.AXES`.
    at: how far the shortest run went.
    evaluated: the metric there by group, between evaluations; None where a
      run has none on one of the sides.
    trained: the same figure of training, recent steps; or None.
  """

  axis: str
  at: float
  evaluated: Sequence[float | None]
  trained: Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What a comparison of runs has found.

  Attributes:
    metric: what is compared.
    groups: in the order of the runs.
    settings: `{name: value by group}` of the settings that differ.
    reporting: the same of settings that change no result.
    circumstances: the same of code, device and text.
    equal: by axis.
    verdict: on the best of each run.
    notes: what to bear in mind.
  """

  metric: str
  groups: Sequence[Group]
  settings: dict[str, list[Any]]
  reporting: dict[str, list[Any]]
  circumstances: dict[str, list[Any]]
  equal: Sequence[Equal]
  verdict: Verdict
  notes: Sequence[str]


def compare(runs: Sequence[Run], metric: str | None = None) -> Comparison:
  """Compares runs.

  Args:
    runs: at least two.
    metric: a key of evaluations; by default `val_loss` (nats per token), or
      `val_bpb` where the runs do not share their tokens.
  """
  notes = []
  if metric is None:
    metric, note = _fitting_metric(runs)
    notes += note
  groups = _groups([_result(run, metric) for run in runs])
  first = [group.results[0].run for group in groups]
  settings, reporting = _differences(first)
  circumstances = {
    name: values
    for name in _CIRCUMSTANCES
    if _differ(values := [_circumstance(run, name) for run in first])
  }
  apart = _incomparable(first, metric)
  verdict = Verdict(None) if apart else judge(groups, metric)
  notes += apart
  equal = _equals(groups, metric)
  notes += _notes(runs, groups, metric, verdict, equal)
  return Comparison(
    metric, groups, settings, reporting, circumstances, equal, verdict, notes
  )


def _circumstance(run: Run, name: str) -> Any:
  return run.facts[name] if name == 'parent' else run.metadata.get(name)


# Metrics whose unit is the same whatever the vocabulary.
_PER_TEXT = ('val_bpb', 'val_bpc')


def _incomparable(runs: Sequence[Run], metric: str) -> list[str]:
  """Why the metric cannot rank these runs: one note, or [] if it can.

  A loss is of the text that was evaluated, and of its unit: nats per token of
  two vocabularies are two units. Runs of versions that did not write down
  which text they evaluated are compared by the whole corpus.
  """

  def differ(name: str) -> bool:
    return _differ([run.metadata.get(name) for run in runs])

  valid = [run.metadata.get('valid_fingerprint') for run in runs]
  if not differ('corpus_fingerprint'):
    return []
  if None in valid or _differ(valid):
    return [
      'the runs were evaluated on different texts, so no metric ranks them; '
      'evaluate them on the same one: craft score --file=FILE with each'
    ]
  if differ('vocabulary_fingerprint') and metric not in _PER_TEXT:
    return [
      f'{metric} is per token and the vocabularies differ, so it ranks '
      'nothing; compare --metric=val_bpb, bits per byte of the same text'
    ]
  return []


def _result(run: Run, metric: str) -> Result:
  found = curves.evaluations(run.path, metric)
  if not found:
    return Result(run, None, None, None)
  step = metric_table.best(metric)(found, key=found.__getitem__)
  return Result(run, found[max(found)], found[step], step)


def _fitting_metric(runs: Sequence[Run]) -> tuple[str, list[str]]:
  """A loss per token compares only models of the same tokens."""
  prints = [run.metadata.get('vocabulary_fingerprint') for run in runs]
  if not _differ(prints):
    return 'val_loss', []
  return 'val_bpb', [
    'the vocabularies differ, so bits per byte are compared, not nats per token'
  ]


def free_settings() -> frozenset[str]:
  """Settings of placement and reporting: they do not identify a run."""
  found = {n for n, _, field in config_lib.settings() if field.metadata['free']}
  return frozenset(found)


def _groups(results: Sequence[Result]) -> list[Group]:
  """Runs equal but for seed and free settings together, in order."""
  free = free_settings() | {'seed'}
  found: dict[Any, list[Result]] = {}
  for result in results:
    settings = result.run.settings
    identity = {k: repr(v) for k, v in settings.items() if k not in free}
    came_from = [
      _circumstance(result.run, name)
      for name in ('corpus_fingerprint', 'parent')
    ]
    key = (*sorted(identity.items()), *came_from)
    found.setdefault(key, []).append(result)
  names = short_names([r.run.name for r in results])
  return [
    Group(members, _label([names[r.run.name] for r in members]))
    for members in found.values()
  ]


def _label(names: Sequence[str]) -> str:
  """`width=64 x3` of `width=64,seed=0` and so on; else that of the first."""
  if len(names) == 1:
    return names[0]
  stems = {name.rpartition(',seed=')[0] for name in names}
  shared = stems.pop() if len(stems) == 1 else ''
  return f'{shared or names[0]} x{len(names)}'


def short_names(names: Sequence[str]) -> dict[str, str]:
  """The names without the folder that they share."""
  folders = [os.path.dirname(os.path.normpath(name)) for name in names]
  absolute = {os.path.isabs(folder) for folder in folders}
  if len(absolute) > 1:
    return {name: name for name in names}
  common = os.path.commonpath(folders)
  return {
    name: os.path.relpath(name, common) if common else name for name in names
  }


def _differences(runs: Sequence[Run]) -> tuple[dict, dict]:
  """The settings that differ: those that may matter, and the free ones."""
  free, differing = free_settings(), differing_settings(runs)
  settings = {k: v for k, v in differing.items() if k not in free}
  return settings, {k: v for k, v in differing.items() if k in free}


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
  """`{name: value by run}` of the settings that are not the same in all."""
  names = {name: None for run in runs for name in run.settings}
  return {
    name: values
    for name in names
    if _differ(values := [run.settings.get(name) for run in runs])
  }


def _differ(values: Sequence[Any]) -> bool:
  return any(value != values[0] for value in values)


# --- equal effort ------------------------------------------------------------


def _equals(groups: Sequence[Group], metric: str) -> list[Equal]:
  """The groups at the end of the shortest run, for each axis that all have."""
  series = [
    [
      (
        curves.Series(result.run, metric),
        curves.Series(result.run, metric_table.training_of(metric)),
      )
      for result in group.results
    ]
    for group in groups
  ]
  found = []
  for axis in curves.AXES:
    by_group = [
      [(a.along(axis), b.along(axis)) for a, b in pairs] for pairs in series
    ]
    ends = [
      max((c.end for c in pair if len(c.x)), default=math.nan)
      for pairs in by_group
      for pair in pairs
    ]
    if any(math.isnan(end) for end in ends):
      continue
    at = min(ends)
    evaluated = [_mean([a.at(at) for a, _ in pairs]) for pairs in by_group]
    trained = [_mean([b.recent(at) for _, b in pairs]) for pairs in by_group]
    found.append(Equal(axis, at, evaluated, trained))
  return found


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return statistics.fmean(known) if len(known) == len(values) else None


def _notes(
  runs: Sequence[Run],
  groups: Sequence[Group],
  metric: str,
  verdict: Verdict,
  equal: Sequence[Equal],
) -> list[str]:
  notes = []
  for group in groups:
    if all(result.best is None for result in group.results):
      notes.append(f'{group.label} has no {metric} yet')
  going = [
    f'{run.name} ({run.status}, step {run.digest.step})'
    for run in runs
    if not run.counts
  ]
  if going:
    shown = ', '.join(going[:4]) + (', ...' if len(going) > 4 else '')
    notes.append(
      f'not finished: {shown}; left out of mean, deviation and verdict'
    )
  overall = verdict.better
  for found in equal:
    values = [v for v in found.evaluated if v is not None]
    if overall is None or len(values) < len(groups):
      continue
    ahead = found.evaluated.index(metric_table.best(metric)(values))
    if ahead != overall:
      notes.append(
        f'at equal {curves.AXES[found.axis]} {groups[ahead].label} is ahead'
      )
  return notes


def as_dict(found: Comparison) -> dict[str, Any]:
  """The comparison in JSON values."""
  return {
    'metric': found.metric,
    'groups': [
      {
        'label': group.label,
        'mean': group.mean,
        'deviation': group.deviation,
        'runs': [
          {
            'name': result.run.name,
            'status': result.run.status,
            'seed': result.run.settings.get('seed'),
            'step': result.run.digest.step,
            'final': result.final,
            'best': result.best,
            'best_step': result.best_step,
            'params': result.run.facts['params'],
            'chars_per_second': result.run.facts['speed'],
            'seconds': result.run.facts['seconds'],
          }
          for result in group.results
        ],
      }
      for group in found.groups
    ],
    'settings': found.settings,
    'reporting': found.reporting,
    'circumstances': found.circumstances,
    'equal': [dataclasses.asdict(equal) for equal in found.equal],
    'verdict': dataclasses.asdict(found.verdict),
    'notes': list(found.notes),
  }
