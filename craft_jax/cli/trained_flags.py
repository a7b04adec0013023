"""The flags that name a trained model, of every command that uses one."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --workdir, --step and --no-ema."""
  parser.add_argument(
    '--workdir', required=True, metavar='DIR', help='the run directory'
  )
  parser.add_argument(
    '--step',
    default='latest',
    metavar='STEP',
    help='a step, latest or best (default: latest)',
  )
  parser.add_argument(
    '--no-ema',
    action='store_true',
    help='the raw weights, where the run keeps averaged ones',
  )
