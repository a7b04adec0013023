"""Fit a scaling law to finished runs, and suggest what to train next.

Fits loss = E + A N^-alpha + B D^-beta (N: all parameters, D: training tokens)
to the last evaluation of each finished run, with bootstrap intervals, plots it,
and finds the compute-optimal size and length for a budget of FLOPs.

A DIR is a run or a folder that contains runs at any depth (default: runs).

examples:
  craft scaling runs --flops=1e15
  craft scaling runs --where 'optim.name==muon' --metric=val_bpb --json
"""

import argparse
import math
from typing import Any

from craft_jax.errors import UserError, hint
from craft_jax.runtime import strict_json

SUMMARY = 'fit a scaling law to runs, and suggest what to train next'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument('dirs', nargs='*', metavar='DIR', help='(default: runs)')
  parser.add_argument(
    '--where',
    default='',
    metavar='FILTER',
    help="such as 'model.width>=64 and optim.name==muon' (default: all)",
  )
  parser.add_argument(
    '--metric',
    default='val_loss',
    metavar='KEY',
    help='loss of an evaluation (default: val_loss)',
  )
  parser.add_argument(
    '--flops',
    type=float,
    metavar='X',
    help='training budget in FLOPs (default: 10 times the largest run)',
  )
  parser.add_argument(
    '--output',
    default='scaling.png',
    metavar='FILE',
    help='.png, .svg or .pdf; empty for no image (default: scaling.png)',
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print one JSON object, last on standard output',
  )


def run(args: argparse.Namespace) -> int:
  """Fits, plots and prints a scaling law; returns the exit code."""
  if args.flops is not None and not 0 < args.flops < math.inf:
    raise UserError(f'--flops={args.flops:g} must be more than 0')
  if args.output:
    from craft_jax.runs import plot

    plot.check(args.output, 0.0, '', [args.metric])
  from craft_jax.cli import runs as runs_command
  from craft_jax.cli import scaling_text
  from craft_jax.runs.scaling import observations
  from craft_jax.runs.scaling import plot as plot_lib

  found, notes = runs_command.open_runs(args.dirs, args.where)
  known = {key for one in found for key in one.digest.final}
  known = {key for key in known if key.startswith('val_')}
  if known and args.metric not in known:
    raise UserError(
      f'--metric={args.metric}: no run has it{hint(args.metric, known)}; they '
      f'have {", ".join(sorted(known))}'
    )
  study = observations.study(
    observations.collect(found, args.metric), args.flops
  )
  following = _following(study)
  if args.output:
    plot_lib.draw(study, args.output)
  print('\n'.join(f'note: {note}' for note in notes), end='\n' * bool(notes))
  print(scaling_text.text(study, following))
  if args.output:
    print(f'picture   {args.output}')
  if args.json:
    data = scaling_text.as_dict(study, following) | {
      'output': args.output or None
    }
    data['notes'] = [*notes, *data['notes']]
    print(strict_json.dumps(data))
  return 0


def _following(study: Any) -> dict[str, Any] | None:
  """Settings of the suggested run, as changes to the most similar run."""
  import jax

  from craft_jax.cli import saved_config
  from craft_jax.train.plan.resize import resized

  jax.config.update('jax_platforms', 'cpu')  # do not occupy an accelerator
  like = min(
    study.points.runs,
    key=lambda one: abs(math.log(one.facts['params'] / study.best.params)),
  )
  vocabulary_size = like.metadata.get('vocabulary_size')
  try:
    cfg = saved_config.load(str(like.path))
  except (OSError, UserError):
    return None  # the run is of an incompatible version
  if not vocabulary_size:
    return None
  model = resized(cfg.model, vocabulary_size, study.best.params)
  if model is None:
    return None
  tokens = cfg.train.batch_size * cfg.model.context
  wanted = {
    'model.width': (model.width, cfg.model.width),
    'model.depth': (model.depth, cfg.model.depth),
    'model.num_heads': (model.num_heads, cfg.model.num_heads),
    'model.mlp_width': (model.mlp_width, cfg.model.mlp_width),
    'train.steps': (max(round(study.best.tokens / tokens), 1), 0),
  }
  return {
    'like': like.name,
    'tokens_per_step': tokens,
    'settings': {k: new for k, (new, old) in wanted.items() if new != old},
  }
