"""Many runs of one config that differ in a few settings, and which is best.

Each run is a process of its own (craft train) in a folder of the sweep. The
same command goes on: what is finished is left, what was stopped is resumed,
what has failed is tried again. Ctrl-C and SIGTERM save the running ones and
end with exit code 75. At the end the runs are compared; exit code 1 if one
has failed.

--set KEY=V1,V2,V3         values
--set KEY=LOW..HIGH        every integer, or any number between (not in a grid)
--set KEY=LOW..HIGH:STEP   in steps
--set KEY=LOW..HIGH:log    any number, evenly in the logarithm (not in a grid)

What all runs share is set as elsewhere, --config.SECTION.NAME=VALUE.

examples:
  craft sweep configs/base.py --set model.width=128,256 --seeds 3
  craft sweep base:nano --set optim.learning_rate=1e-4..1e-2:log \\
    --set model.depth=2..8 --search=random --trials=20
  craft sweep base --set model.width=128,256 --print-commands
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from craft_jax.errors import INTERRUPTED, RunFailed, UserError
from craft_jax.runtime import strict_json

SUMMARY = 'train many runs that differ in a few settings, and compare them'
_SEARCHES = ('grid', 'random', 'bayes')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft sweep`."""
  parser.add_argument(
    'spec', nargs='?', metavar='CONFIG', help='the same as --config'
  )
  parser.add_argument(
    '--config',
    metavar='FILE[:VARIANT]',
    help='config file, or the name of a shipped one (default: base)',
  )
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='KEY=VALUES',
    help='a setting that varies; may be given several times',
  )
  parser.add_argument(
    '--seeds', type=int, metavar='N', help='each combination with N seeds'
  )
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help='folder of the runs (default: runs/sweep-CONFIG)',
  )
  parser.add_argument(
    '--jobs', type=int, default=1, metavar='N', help='at a time (default: 1)'
  )
  parser.add_argument(
    '--metric',
    default='val_loss',
    metavar='KEY',
    help='what is best: val_loss, val_bpb, ... (default: val_loss)',
  )
  _add_search(parser)
  _add_pieces(parser)
  parser.add_argument(
    '--quiet', action='store_true', help='no progress, the table only'
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print the results as one JSON object, last on standard output',
  )


def _add_search(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group('search')
  group.add_argument(
    '--search',
    default='grid',
    choices=_SEARCHES,
    help='all combinations, random ones, or those that look best after what '
    "was seen (needs Optuna: pip install 'craft-jax[sweep]') (default: grid)",
  )
  group.add_argument(
    '--trials', type=int, metavar='N', help='combinations of random and bayes'
  )
  group.add_argument(
    '--draw-seed',
    type=int,
    default=0,
    metavar='N',
    help='decides what random and bayes draw (default: 0)',
  )
  group.add_argument(
    '--no-prune',
    action='store_true',
    help='bayes trains every run to its end, however bad',
  )


def _add_pieces(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group('in pieces, as on a cluster')
  group.add_argument(
    '--dry-run', action='store_true', help='list the runs and do nothing'
  )
  group.add_argument(
    '--print-commands',
    action='store_true',
    help='print a craft train command for each run and do nothing',
  )
  group.add_argument(
    '--index',
    type=int,
    metavar='I',
    help='only run I, from 0, in place of this process',
  )


def run(args: argparse.Namespace) -> int:
  """Plans the sweep, then runs, lists or prints it."""
  from craft_jax.cli import sweep_request
  from craft_jax.runs.sweep import plan
  from craft_jax.runtime.signals import Interrupts

  request, made = sweep_request.planned(args)
  old = plan.read(request.folder)
  if old is not None:
    if why := plan.conflict(old, made):
      raise UserError(
        f'{request.folder} holds a sweep with {why}; give another --workdir, '
        f'or what it was started with: {shlex.join(old.command)}'
      )
    made = plan.continued(old, made)
  if args.dry_run or args.print_commands:
    return _show(args, request, made)
  if args.index is not None:
    plan.write(request.folder, made)
    return _replaced(request, made.trials[args.index])
  with Interrupts() as interrupts:
    return _run(args, request, made, interrupts)


# --- in pieces ---------------------------------------------------------------


def _show(args: argparse.Namespace, request: Any, made: Any) -> int:
  """Prints the runs, or their commands."""
  from craft_jax.cli import runs_text
  from craft_jax.runs.sweep.run import as_dict

  rows = as_dict(request, made, {})
  trials = list(enumerate(made.trials))
  if args.index is not None:
    trials = [trials[args.index]]
  if args.print_commands:
    for _, trial in trials:
      print(shlex.join(['craft', 'train', *request.flags(trial)]))
  else:
    lines = [[i, trial.name, rows[i]['status']] for i, trial in trials]
    if lines:
      print('\n'.join(runs_text.table(['index', 'run', 'status'], lines, 3)))
    left = request.total - len(made.trials)
    if left:
      print(f'{left} more that the search decides on')
  if args.json:
    _print_json({'folder': str(request.folder), 'runs': rows})
  return 0


def _replaced(request: Any, trial: Any) -> int:
  """Trains one run in place of this process, so signals and exit code are its.

  A run that is finished is left.
  """
  from craft_jax.runs.sweep import processes
  from craft_jax.runs.sweep.run import state_of

  if state_of(request.folder, trial) == 'finished':
    print(f'{trial.name} is finished')
    return 0
  sys.stdout.flush()
  command = processes.command(request.flags(trial))
  os.execv(command[0], command)


# --- all of it ---------------------------------------------------------------


def _run(
  args: argparse.Namespace, request: Any, made: Any, interrupts: Any
) -> int:
  from craft_jax.runs.lock import Lock
  from craft_jax.runs.sweep import plan
  from craft_jax.runs.sweep.run import Sweep

  def say(line: str) -> None:
    if not args.quiet:
      print(line, file=sys.stderr, flush=True)

  lock = Lock(request.folder)
  try:
    plan.write(request.folder, made)
    interrupts.defer()
    sweep = Sweep(request, made, interrupts, say)
    say(
      f'{request.total} runs in {request.folder}, {len(sweep.outcomes)} ended '
      'before'
    )
    sweep.run()
  finally:
    lock.close()
  ended = sweep.outcomes
  if interrupts.requested():
    done = sum(one.status in ('finished', 'pruned') for one in ended.values())
    raise RunFailed(
      f'interrupted; {done} of {request.total} runs have ended, the same '
      'command goes on',
      INTERRUPTED,
    )
  text, data = _results(request, sweep.plan, ended)
  print(text)
  if args.json:
    _print_json(data)
  if any(one.status == 'failed' for one in ended.values()):
    return 1
  # Somebody else has asked one to end.
  saved = any(
    one.status == 'stopped' and one.code == INTERRUPTED
    for one in ended.values()
  )
  return INTERRUPTED if saved else 0


def _results(
  request: Any, made: Any, ended: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
  """The table of the runs that were not given up, the others below it."""
  from craft_jax.cli import runs_text
  from craft_jax.runs import compare, listing
  from craft_jax.runs.sweep.run import as_dict

  rows = as_dict(request, made, ended)
  paths = [
    request.folder / row['name'] for row in rows if row['status'] != 'pruned'
  ]
  found, notes = listing.load_all(
    [path for path in paths if listing.is_run(path)]
  )
  data: dict[str, Any] = {'folder': str(request.folder), 'runs': rows}
  data['comparison'] = None
  lines = [f'note: {note}' for note in notes]
  if found:
    result = compare.compare(found, made.metric)
    lines.append(runs_text.comparison(result, ranked=True))
    data['comparison'] = compare.as_dict(result)
  for row in rows:
    if row['status'] == 'pruned':
      best = runs_text.figure(row['best'])
      lines.append(f'{row["name"]}: {row["reason"]}, best {made.metric} {best}')
    elif row['status'] == 'failed':
      lines.append(f'{row["name"]}: failed: {row["reason"]}')
  return '\n'.join(lines), data


def _print_json(data: dict[str, Any]) -> None:
  from craft_jax.runs.writers import to_json

  print(strict_json.dumps(to_json(data)))
