"""Flags of `craft eval` and `craft score` for models that adapt to the text."""

import argparse
from typing import Any

from craft_jax.errors import UserError

# Printed title of each result of `dynamic_evaluation.adaptive_nats`.
TITLES = {
  'dynamic': 'dynamic: the weights adapt',
  'dynamic_cache': 'dynamic_cache: the model mixed with n-gram counts',
  'dynamic_both': 'dynamic_both: weights that adapt, mixed with n-gram counts',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  group = parser.add_argument_group(
    'models that adapt to the text (adds metrics named dynamic)'
  )
  group.add_argument(
    '--dynamic',
    action='store_true',
    help='train on each window after scoring it; the checkpoint is unchanged',
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
    help='decay towards the trained weights, as a share per window (default: '
    '0.001)',
  )
  group.add_argument(
    '--cache',
    action='store_true',
    help='mix the model with counts of the n-grams seen so far',
  )


def adaptation(args: argparse.Namespace) -> Any:
  """The `dynamic_evaluation.Adaptation` that the flags select, or None.

  Raises:
    UserError: a rate is out of range or given without --dynamic, or --dynamic
      is given with quantized weights.
  """
  given = {
    'learning_rate': args.dynamic_rate,
    'decay': args.dynamic_decay,
  }
  given = {name: value for name, value in given.items() if value is not None}
  if not args.dynamic:
    if given:
      raise UserError(
        '--dynamic-rate and --dynamic-decay need --dynamic; give it too'
      )
    return None
  if args.weights != 'auto':
    raise UserError(
      f'--dynamic cannot train {args.weights} weights; remove --weights or '
      '--dynamic'
    )
  from craft_jax.inference.dynamic_evaluation import Adaptation

  return Adaptation(**given)


def lines(figures: dict[str, Any]) -> list[str]:
  """Formats the adaptive metrics, one line each; [] if there are none."""
  found = []
  for name, title in TITLES.items():
    if f'loss_{name}' not in figures:
      continue
    line = f'{title}: {figures[f"loss_{name}"]:.4f} nats per token'
    if figures[f'bpb_{name}'] is not None:
      line += f', {figures[f"bpb_{name}"]:.4f} bits per byte'
    found.append(line)
  return found
