"""The flags that name a trained model, of every command that uses one."""

import argparse

from craft_jax.cli import parser as parser_lib
from craft_jax.config.settings import CACHES, WEIGHTS

MODEL = 'the model'  # title of the group


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --workdir, --step and --no-ema."""
  group = parser_lib.group(parser, MODEL)
  group.add_argument(
    '--workdir', required=True, metavar='DIR', help='the run directory'
  )
  group.add_argument(
    '--step',
    default='latest',
    metavar='STEP',
    help='a step, latest or best (default: latest)',
  )
  group.add_argument(
    '--no-ema',
    action='store_true',
    help='the raw weights, where the run keeps averaged ones',
  )


def add_weights(parser: argparse.ArgumentParser) -> None:
  """Adds --weights, where the model may be another than was trained."""
  parser_lib.group(parser, MODEL).add_argument(
    '--weights',
    default='auto',
    choices=WEIGHTS,
    help='int8 rounds the matrices: less memory, a little worse (default: auto,'
    ' as trained)',
  )


def add_kv_cache(parser: argparse.ArgumentParser) -> None:
  """Adds --kv-cache, where text is read and written a piece at a time."""
  parser_lib.group(parser, MODEL).add_argument(
    '--kv-cache',
    default='auto',
    choices=CACHES,
    help='how keys and values are kept (default: auto, what rounds no more '
    'than the model does)',
  )
