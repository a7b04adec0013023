"""Run a benchmark of a checkout, or list benchmarks with saved results.

Without a name: the question of each script, and its results on this device.
All flags after a name are passed to the script, --help too; a setting
(--config.a.b=v) is passed as --set a.b=v.

examples:
  craft bench
  craft bench guards --help
  craft bench guards --pairs 40 --save
"""

import argparse
import pathlib
import runpy

from craft_jax.errors import UserError

SUMMARY = 'run a benchmark, or list benchmarks (in a checkout)'
FOLDER = pathlib.Path(__file__).parents[2] / 'benchmarks'
PROGRAM = FOLDER / 'bench.py'  # only in a checkout, not in the package


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    'name', nargs='?', metavar='NAME', help='a script (default: list them)'
  )
  parser.add_argument(
    'flags',
    nargs=argparse.REMAINDER,
    metavar='...',
    help='flags of the script',
  )
  parser.add_argument(
    '--save',
    action='store_true',
    help='save the result under benchmarks/results/DEVICE (before or '
    'after NAME)',
  )
  parser.set_defaults(config=None)  # accept settings, for the script


def run(args: argparse.Namespace) -> int:
  """Lists the benchmarks or runs one; returns its exit code."""
  if not PROGRAM.is_file():
    raise UserError(
      'the benchmarks are not part of an installed package; run craft bench '
      'from a checkout of Craft (pip install -e .)'
    )
  program = runpy.run_path(str(PROGRAM))
  return program['run'](
    FOLDER, args.name, args.flags, args.overrides, args.save
  )
