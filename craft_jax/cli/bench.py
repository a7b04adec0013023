"""Run a benchmark of the checkout, or list them with the results kept.

Without a name: what each script asks, and what it found on this device. All
that follows a name goes to the script, --help too; a setting
(--config.a.b=v) goes to it as --set a.b=v.

examples:
  craft bench
  craft bench guards --help
  craft bench guards --pairs 40 --save
"""

import argparse
import pathlib
import runpy

from craft_jax.errors import UserError

SUMMARY = 'run a benchmark, or list them (in a checkout)'
FOLDER = pathlib.Path(__file__).parents[2] / 'benchmarks'
PROGRAM = FOLDER / 'bench.py'  # of the checkout: not part of the package


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    'name', nargs='?', metavar='NAME', help='a script (default: list them)'
  )
  parser.add_argument(
    'flags',
    nargs=argparse.REMAINDER,
    metavar='...',
    help='what the script is given',
  )
  parser.add_argument(
    '--save',
    action='store_true',
    help='keep the result under benchmarks/results/DEVICE (before or '
    'after NAME)',
  )
  parser.set_defaults(config=None)  # settings are taken, for the script


def run(args: argparse.Namespace) -> int:
  """Lists, or runs one script; returns its exit code."""
  if not PROGRAM.is_file():
    raise UserError(
      'the benchmarks are not part of an installed package; run craft bench '
      'from a checkout of Craft (pip install -e .)'
    )
  program = runpy.run_path(str(PROGRAM))
  return program['run'](
    FOLDER, args.name, args.flags, args.overrides, args.save
  )
