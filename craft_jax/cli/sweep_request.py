"""The flags of `craft sweep` as a request and a plan."""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from craft_jax.errors import UserError, hint
from craft_jax.runs import metric_table
from craft_jax.runs.sweep import bayes, plan, processes, space
from craft_jax.runs.sweep.run import Request
from craft_jax.runtime import files

_MOST_RUNS = 10_000


def planned(args: argparse.Namespace) -> tuple[Request, plan.Plan]:
  """The request and its plan, every run of which was checked.

  Raises:
    UserError: flags that do not go together, or a run that does not hold.
  """
  _check_flags(args)
  spec = args.config or args.spec or 'base'
  varied = space.parse(args.set)
  _check_common(args, [one.name for one in varied])
  if args.search == 'bayes':
    bayes.check_installed()
    trials = plan.samples(varied, args.draw_seed)
    cfg = plan.check(spec, args.overrides, trials)
    trials = []
  else:
    points = (
      _grid(varied, args.seeds or 1)
      if args.search == 'grid'
      else space.draw(varied, args.trials, args.draw_seed)
    )
    first = None if args.search == 'grid' else 0
    cfg = plan.check(spec, args.overrides, plan.make_trials(points, (), first))
    seeds = range(cfg.seed, cfg.seed + args.seeds) if args.seeds else ()
    trials = plan.make_trials(points, seeds, first)
  total = len(trials) if args.search != 'bayes' else args.trials
  if args.index is not None and not 0 <= args.index < total:
    raise UserError(f'--index={args.index} must be from 0 to {total - 1}')
  names = [one.name for one in varied] + ['seed'] * bool(args.seeds)
  shares, warning = processes.shares(args.jobs)
  if warning:
    print(f'craft: {warning}', file=sys.stderr)
  request = Request(
    folder=_folder(args.workdir, spec),
    spec=spec,
    overrides=args.overrides,
    space=varied,
    total=total,
    prune=not args.no_prune,
    shares=shares,
  )
  made = plan.Plan(
    search=args.search,
    space={one.name: one.text for one in varied},
    draw_seed=args.draw_seed,
    metric=args.metric,
    settings=plan.shared(cfg, names),
    trials=trials,
    command=['craft', *sys.argv[1:]],
  )
  return request, made


def _grid(
  varied: Sequence[space.Dimension], seeds: int
) -> list[dict[str, Any]]:
  count = math.prod(len(one.listed()) for one in varied) * seeds
  if count > _MOST_RUNS:
    raise UserError(
      f'the grid has {count:,} runs; list fewer values, or use --search=random'
    )
  return space.grid(varied)


def _check_flags(args: argparse.Namespace) -> None:
  """Raises UserError for flags that do not go together."""
  if args.spec and args.config:
    raise UserError(f'give {args.spec} or --config={args.config}, not both')
  if not args.set and not args.seeds:
    raise UserError('what varies? give --set KEY=V1,V2 or --seeds N')
  for flag, value, least in (
    ('--seeds', args.seeds, 1),
    ('--trials', args.trials, 1),
    ('--draw-seed', args.draw_seed, 0),
  ):
    if value is not None and value < least:
      raise UserError(f'{flag}={value} must be at least {least}')
  known = metric_table.ranking()
  if args.metric not in known:
    raise UserError(
      f'--metric={args.metric}: evaluations have no such figure'
      f'{hint(args.metric, known)}; they have {", ".join(known)}'
    )
  if args.search == 'grid' and args.trials:
    raise UserError(
      f'--trials={args.trials} needs --search=random or bayes; a grid has all '
      'combinations'
    )
  if args.search != 'grid' and not (args.trials and args.set):
    raise UserError(f'--search={args.search} needs --set and --trials=N')
  if args.search == 'bayes' and args.seeds:
    raise UserError(
      '--search=bayes takes no --seeds; train what it finds again, as a grid '
      'with --seeds'
    )
  if args.search == 'bayes' and (args.index is not None or args.print_commands):
    raise UserError(
      '--search=bayes decides on each run after the ones before, so its runs '
      'cannot be told in advance; use --search=random'
    )


def _check_common(args: argparse.Namespace, varied: Sequence[str]) -> None:
  given = {item.partition('=')[0] for item in args.overrides}
  for name in varied:
    if name in given:
      raise UserError(f'{name} is in --set and in --config.{name}; drop one')
  if args.seeds and 'seed' in varied:
    raise UserError('seed is in --set, and --seeds sets it too; drop one')


def _folder(workdir: str | None, spec: str) -> files.AnyPath:
  if workdir == '':
    raise UserError('--workdir is empty; give a folder, or leave the flag out')
  if workdir is None:
    base, _, variant = spec.partition(':')
    words = ['sweep', pathlib.Path(base).stem, variant]
    return pathlib.Path('runs', '-'.join(filter(None, words)))
  return files.as_path(workdir)
