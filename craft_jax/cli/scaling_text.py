"""A scaling law as text and as JSON values."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from craft_jax.cli.runs_text import count, table
from craft_jax.runs.scaling import law as law_lib
from craft_jax.runs.scaling.law import interval
from craft_jax.runs.scaling.observations import Study

_CONSTANTS = ('E', 'A', 'alpha', 'B', 'beta')


def text(study: Study, following: Mapping[str, Any] | None) -> str:
  """For a person."""
  return '\n'.join(_lines(study, following))


def _lines(study: Study, following: Mapping[str, Any] | None) -> Iterator[str]:
  points, law = study.points, study.law
  number = int(points.groups.max()) + 1
  seeds = f' ({number} without seeds)' if number < len(points.runs) else ''
  yield f'fitted to {len(points.runs)} finished runs{seeds}'
  yield (
    f'{points.metric} = {law.E:.4g} + {law.A:.4g} N^-{law.alpha:.3g} + '
    f'{law.B:.4g} D^-{law.beta:.3g}'
  )
  yield '  N: all parameters, D: tokens read'
  yield ''
  head = ['', 'fit', f'{law_lib.COVERED:.0%} interval']
  rows = [
    (
      name,
      f'{getattr(law, name):.4g}',
      _range(interval([getattr(draw, name) for draw in study.draws]), '.3g'),
    )
    for name in _CONSTANTS
  ]
  yield from table(head, rows)
  worst = int(np.argmax(np.abs(study.errors)))
  yield (
    f'off by {np.median(np.abs(study.errors)):.2%} in the median, '
    f'{abs(study.errors[worst]):.2%} at the most '
    f'({points.runs[worst].name})'
  )
  yield ''
  yield f'the least {points.metric} for {study.flops:.3g} FLOPs'
  best = study.best
  yield from table(
    head,
    [
      ('  parameters', count(best.params), _counts(study, 'params')),
      ('  tokens read', count(best.tokens), _counts(study, 'tokens')),
      (
        f'  {points.metric}',
        f'{best.loss:.4f}',
        _range(interval([split.loss for split in study.splits]), '.4f'),
      ),
    ],
  )
  if following:
    yield f'train next: the settings of {following["like"]} with'
    flags = [
      f'--config.{name}={value}'
      for name, value in following['settings'].items()
    ]
    yield f'  {" ".join(flags)}'
  for note in study.notes:
    yield f'note: {note}'


def _range(ends: tuple[float, float], form: str) -> str:
  return f'{ends[0]:{form}} to {ends[1]:{form}}'


def _counts(study: Study, name: str) -> str:
  low, high = interval([getattr(split, name) for split in study.splits])
  return f'{count(low)} to {count(high)}'


def as_dict(
  study: Study, following: Mapping[str, Any] | None
) -> dict[str, Any]:
  """For a program."""
  points = study.points
  return {
    'metric': points.metric,
    'law': dataclasses.asdict(study.law),
    'intervals': {
      name: interval([getattr(draw, name) for draw in study.draws])
      for name in _CONSTANTS
    },
    'covered': law_lib.COVERED,
    'cost': dataclasses.asdict(study.cost),
    'flops': study.flops,
    'best': dataclasses.asdict(study.best),
    'best_intervals': {
      name: interval([getattr(split, name) for split in study.splits])
      for name in ('params', 'tokens', 'loss')
    },
    'next': following,
    'runs': [
      {
        'name': run.name, 'params': params, 'tokens': tokens,
        'flops': flops, 'loss': loss, 'error': error,
      }
      for run, params, tokens, flops, loss, error in zip(
        points.runs, points.params.tolist(), points.tokens.tolist(),
        points.flops.tolist(), points.loss.tolist(), study.errors.tolist(),
        strict=True,
      )
    ],
    'notes': list(study.notes),
  }  # fmt: skip
