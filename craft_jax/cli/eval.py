"""Evaluate a trained model on a whole split of its corpus.

Prints nats, bits per character and per byte, perplexity and accuracy, also by
class of character and by position in the window. The weights do not change.
--stride adds metrics in which every token has context before it; --dynamic and
--cache add those of a model that adapts to the text as it reads it.

examples:
  craft eval --workdir=runs/first
  craft eval --workdir=runs/first --split=test --stride=64 --json
"""

import argparse

from craft_jax.cli import adaptive, distributed, trained_flags
from craft_jax.runtime import strict_json

SUMMARY = 'evaluate a trained model on a whole split'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft eval`."""
  trained_flags.add_arguments(parser)
  trained_flags.add_weights(parser)
  parser.add_argument(
    '--split',
    default='valid',
    choices=('train', 'valid', 'test'),
    help='split of the corpus (default: valid)',
  )
  parser.add_argument(
    '--stride',
    type=int,
    default=None,
    metavar='N',
    help='tokens by which windows of the strided metrics advance; 0 disables '
    'them (default: eval.stride of the run)',
  )
  parser.add_argument(
    '--task-rows',
    type=int,
    metavar='N',
    help='prompts of pairs to complete, at most; 0 is none (default: all)',
  )
  parser.add_argument(
    '--path',
    metavar='TEXT',
    help='text, if it has moved (default: data.path of the run)',
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print the metrics as one JSON object, last on standard output',
  )
  adaptive.add_arguments(parser)
  distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Evaluates a split and prints the metrics."""
  distributed.join(args)
  adaptation = adaptive.adaptation(args)

  from craft_jax.inference import metrics
  from craft_jax.inference.evaluate import PREFIXES, evaluate_run
  from craft_jax.runs import metric_table
  from craft_jax.runs.writers import to_json
  from craft_jax.runtime import distributed as distributed_lib

  figures = evaluate_run(
    args.workdir,
    args.step,
    split=args.split,
    stride=args.stride,
    ema=not args.no_ema,
    weights=args.weights,
    path=args.path,
    adaptation=adaptation,
    cache=args.cache,
    task_rows=args.task_rows,
  )
  if not distributed_lib.is_first():
    return 0
  prefix = PREFIXES[args.split] + '_'
  shown = {k.removeprefix(prefix): v for k, v in figures.items()}
  print(
    f'{args.workdir}, step {shown["step"]}, {args.split} split, windows of '
    f'{shown["context"]} tokens without overlap:'
  )
  print('\n'.join(metrics.lines(shown)))
  if 'stride' in shown:
    context = shown['context'] - shown['stride']
    print(
      f'windows that advance by {shown["stride"]} (at least {context} tokens '
      'of context):'
    )
    strided = {
      key.removesuffix('_strided'): value
      for key, value in shown.items()
      if key.endswith('_strided')
    }
    print('\n'.join(metric_table.lines(strided)))
  if 'stride_dynamic' in shown:
    print(
      'adapting to the text, windows that advance by '
      f'{shown["stride_dynamic"]}; not comparable with the metrics above:'
    )
    print('\n'.join(adaptive.lines(shown)))
  if args.json:
    print(strict_json.dumps(to_json(figures)))
  return 0
