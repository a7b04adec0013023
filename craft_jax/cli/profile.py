"""Trace a few steps and tell where their time goes.

Compiles the program that `craft train` runs for a config, does steps of it
from the start of a run that is not kept, and reads the trace: time by kind of
operation, by part of the step and by named scope, memory, rates against what
the device can do, and what to try next. The trace stays in --output, for
TensorBoard (xprof) and Perfetto (the .trace.json.gz, at
https://ui.perfetto.dev).

With --workdir it is the config of a run, and the trace is kept with it where
that is on a disk.

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

SUMMARY = 'trace a few training steps and tell where the time goes'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    '--config',
    metavar='FILE[:VARIANT]',
    help='config file, or the name of a shipped one (default: base)',
  )
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help='a run directory, in place of --config (default: none)',
  )
  parser.add_argument(
    '--steps', type=int, default=10, help='steps to trace (default: 10)'
  )
  parser.add_argument(
    '--output',
    metavar='DIR',
    help='where the trace is kept (default: profiles/CONFIG-DATE-TIME, of a '
    'run DIR/profiles/DATE-TIME)',
  )
  parser.add_argument(
    '--top', type=int, default=15, help='operations to list (default: 15)'
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print the figures as one JSON object, last on standard output',
  )


def run(args: argparse.Namespace) -> int:
  """Records and prints; returns the exit code."""
  for flag in ('steps', 'top'):
    if getattr(args, flag) < 1:
      raise UserError(f'--{flag} must be at least 1')
  files.check_local(args.output or '', '--output')
  stamp = time.strftime('%Y%m%d-%H%M%S')
  if args.workdir:
    cfg = _config_of(args)
    if files.is_remote(args.workdir):  # JAX writes a trace to a disk
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
  # Else a program from the cache may have the scopes of an older source.
  jax.config.update('jax_compilation_cache_include_metadata_in_key', True)
  recording = record(cfg, folder, args.steps)
  print(text.text(recording, args.top))
  if args.json:
    print(strict_json.dumps(text.as_dict(recording, args.top)))
  return 0


def _config_of(args: argparse.Namespace) -> Config:
  """The config that the run in --workdir has saved."""
  if args.config or args.overrides:
    raise UserError(
      '--workdir takes all settings from its run; leave out --config and its '
      'settings, or leave out --workdir'
    )
  return saved_config.load(args.workdir)


def _name(spec: str) -> str:
  name, _, variant = spec.partition(':')
  return '-'.join(filter(None, [pathlib.Path(name).stem, variant]))
