"""Flags of commands that use a trained model."""

import argparse

from craft_jax.cli import parser as parser_lib
from craft_jax.config.settings import CACHES, WEIGHTS

MODEL = 'model'  # title of the group of flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --workdir, --step and --no-ema."""
  group = parser_lib.group(parser, MODEL)
  group.add_argument(
    '--workdir', required=True, metavar='DIR', help='run directory'
  )
  group.add_argument(
    '--step',
    default='latest',
    metavar='STEP',
    help='step, latest or best (default: latest)',
  )
  group.add_argument(
    '--no-ema',
    action='store_true',
    help='use the raw weights even if the run has an EMA',
  )


def add_weights(parser: argparse.ArgumentParser) -> None:
  """Adds --weights, which selects quantization of the weights."""
  parser_lib.group(parser, MODEL).add_argument(
    '--weights',
    default='auto',
    choices=WEIGHTS,
    help='int8 quantizes the matrices: less memory, slightly less accurate '
    '(default: auto, as trained)',
  )


def add_kv_cache(parser: argparse.ArgumentParser) -> None:
  """Adds --kv-cache, which selects the data type of the KV cache."""
  parser_lib.group(parser, MODEL).add_argument(
    '--kv-cache',
    default='auto',
    choices=CACHES,
    help='data type of the KV cache (default: auto, the precision of the '
    'model)',
  )
