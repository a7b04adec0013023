"""The flags of figures of a model that adapts to the text as it reads it."""

import argparse
from typing import Any

from craft_jax.errors import UserError

# What a name of `dynamic.adaptive_nats` stands for.
TITLES = {
  'dynamic': 'dynamic: the weights adapt',
  'dynamic_cache': 'dynamic_cache: counts of n-grams beside the model',
  'dynamic_both': 'dynamic_both: counts beside weights that adapt',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  group = parser.add_argument_group(
    'models that adapt to the text (figures of their own, named dynamic)'
  )
  group.add_argument(
    '--dynamic',
    action='store_true',
    help='learn from each window once it is scored; the checkpoint stays',
  )
  group.add_argument(
    '--dynamic-rate',
    type=float,
    metavar='X',
    help='learning rate of --dynamic (default: 0.0005)',
  )
  group.add_argument(
    '--dynamic-decay',
    type=float,
    metavar='X',
    help='share of the way back to the trained weights per window (default: '
    '0.001)',
  )
  group.add_argument(
    '--cache',
    action='store_true',
    help='mix the model with counts of the n-grams seen so far',
  )


def adaptation(args: argparse.Namespace) -> Any:
  """The `dynamic.Adaptation` that the flags ask for, or None.

  Raises:
    UserError: rates out of range, or without --dynamic; weights that cannot
      learn.
  """
  given = {
    'learning_rate': args.dynamic_rate,
    'decay': args.dynamic_decay,
  }
  given = {name: value for name, value in given.items() if value is not None}
  if not args.dynamic:
    if given:
      raise UserError(
        '--dynamic-rate and --dynamic-decay are of --dynamic; give it too'
      )
    return None
  if args.weights != 'auto':
    raise UserError(
      f'--dynamic learns, which weights in {args.weights} cannot; leave '
      '--weights or --dynamic out'
    )
  from craft_jax.inference.dynamic_evaluation import Adaptation

  return Adaptation(**given)


def lines(figures: dict[str, Any]) -> list[str]:
  """The adaptive figures for people, a line each; [] if there are none."""
  found = []
  for name, title in TITLES.items():
    if f'loss_{name}' not in figures:
      continue
    line = f'{title}: {figures[f"loss_{name}"]:.4f} nats per token'
    if figures[f'bpb_{name}'] is not None:
      line += f', {figures[f"bpb_{name}"]:.4f} bits per byte'
    found.append(line)
  return found
