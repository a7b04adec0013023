"""Profile a few training steps.

Compiles the program that `craft train` runs for a config, runs its first steps
without saving them, and analyses the trace: time by kind of operation, by part
of the step and by named scope, memory, rates against the device's peak rates,
and what to try next. The trace is kept in --output, for TensorBoard (xprof) and
Perfetto (the .trace.json.gz, at https://ui.perfetto.dev).

With --workdir the config is that of a run, and a trace of a run on a local disk
is kept in its directory.

examples:
  craft profile --config=base
  craft profile --workdir=runs/first --steps=4
  craft profile --config=shakespeare --config.train.batch_size=8 --steps=4
"""

import argparse
import pathlib
import time

from craft_jax.cli import saved_config
from craft_jax.config.load import load_config
from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.runs import layout
from craft_jax.runtime import files, strict_json, xla_flags

SUMMARY = 'profile a few training steps'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    '--config',
    metavar='FILE[:VARIANT]',
    help='config file or name of a shipped one (default: base)',
  )
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help='run directory, instead of --config (default: none)',
  )
  parser.add_argument(
    '--steps', type=int, default=10, help='steps to profile (default: 10)'
  )
  parser.add_argument(
    '--output',
    metavar='DIR',
    help='folder of the trace (default: profiles/CONFIG-DATE-TIME; for a run '
    'DIR/profiles/DATE-TIME)',
  )
  parser.add_argument(
    '--top', type=int, default=15, help='operations to list (default: 15)'
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print the results as one JSON object, last on standard output',
  )


def run(args: argparse.Namespace) -> int:
  """Profiles a config and prints the results; returns the exit code."""
  for flag in ('steps', 'top'):
    if getattr(args, flag) < 1:
      raise UserError(f'--{flag} must be at least 1')
  files.check_local(args.output or '', '--output')
  stamp = time.strftime('%Y%m%d-%H%M%S')
  if args.workdir:
    cfg = _config_of(args)
    if files.is_remote(args.workdir):  # JAX writes traces to a local disk only
      name = args.workdir.rstrip('/').rpartition('/')[2]
      default = pathlib.Path(layout.PROFILES, f'{name}-{stamp}')
    else:
      default = pathlib.Path(args.workdir, layout.PROFILES, stamp)
  else:
    spec = args.config or 'base'
    cfg = load_config(spec, args.overrides)
    default = pathlib.Path(layout.PROFILES, f'{_name(spec)}-{stamp}')
  folder = pathlib.Path(args.output or default)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f'{folder} is not empty; give another --output')

  xla_flags.see_operations()

  import jax
  from absl import logging

  from craft_jax.data.sources import cache_folder
  from craft_jax.runtime import compilation_cache
  from craft_jax.train.profile import text
  from craft_jax.train.profile.record import record

  logging.set_verbosity(logging.FATAL)
  compilation_cache.use(cache_folder(cfg.data))
  # Otherwise a cached program could have the named scopes of older code.
  jax.config.update('jax_compilation_cache_include_metadata_in_key', True)
  recording = record(cfg, folder, args.steps)
  print(text.text(recording, args.top))
  if args.json:
    print(strict_json.dumps(text.as_dict(recording, args.top)))
  return 0


def _config_of(args: argparse.Namespace) -> Config:
  """Loads the config of the run in --workdir."""
  if args.config or args.overrides:
    raise UserError(
      '--workdir takes all settings from its run; remove --config and its '
      'settings, or remove --workdir'
    )
  return saved_config.load(args.workdir)


def _name(spec: str) -> str:
  name, _, variant = spec.partition(':')
  return '-'.join(filter(None, [pathlib.Path(name).stem, variant]))
