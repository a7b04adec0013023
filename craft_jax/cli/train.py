"""Train a model, or continue a run.

A run continues from the last checkpoint in --workdir. Settings are changed with
--config.SECTION.NAME=VALUE; `craft config docs` lists them all.

Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP save a checkpoint and exit with code 75; the
same command continues the run.

examples:
  craft train --config=base --workdir=runs/first
  craft train --config=text --config.data.path=my.txt --config.train.steps=500
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shlex
import shutil
import sys
import time
from typing import Any

from craft_jax.cli import distributed, saved_config
from craft_jax.config.load import load_config
from craft_jax.config.settings import Config
from craft_jax.errors import OutOfMemory, UserError
from craft_jax.runs import layout
from craft_jax.runtime import files, strict_json, xla_flags
from craft_jax.runtime.signals import Interrupts, follow_parent

SUMMARY = 'train a model, or continue a run (the default command)'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft train`."""
  parser.add_argument(
    '--config',
    metavar='FILE[:VARIANT]',
    help='config file or name of a shipped one (default: that of the run in '
    '--workdir, else base)',
  )
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help='run directory (default: runs/CONFIG-DATE-TIME)',
  )
  parser.add_argument(
    '--from',
    dest='parent',
    metavar='RUN[@STEP]',
    help='start a new run from the weights of another one, with its settings '
    'unless --config is given: a step, best, latest, ema or raw; same as '
    '--config.train.init_from (default: none)',
  )
  parser.add_argument(
    '--stop-at-step',
    metavar='N',
    help='stop early without changing the schedule; same as '
    '--config.train.stop_at_step',
  )
  parser.add_argument(
    '--quiet', action='store_true', help='print results only, no progress'
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print the results as one JSON object, last on standard output',
  )
  parser.add_argument(
    '--auto-batch',
    action='store_true',
    help='compile first, and raise train.accumulate until the step fits into '
    'memory (the same batch, the same data)',
  )
  distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Trains, then prints a sample and the results; returns the exit code."""
  if args.stop_at_step is not None:
    args.overrides.append(f'train.stop_at_step={args.stop_at_step}')
  if args.parent is not None:
    args.overrides.append(f'train.init_from={args.parent}')
  if args.workdir == '':
    raise UserError('--workdir is empty; give a folder, or leave the flag out')
  if args.auto_batch and distributed.asked(args):
    raise UserError(
      '--auto-batch needs a run of one process; set train.accumulate instead '
      '(craft plan suggests a value)'
    )
  follow_parent()
  with Interrupts() as interrupts:
    return _run(args, interrupts)


def _run(args: argparse.Namespace, interrupts: Interrupts) -> int:
  cfg = _config(args)
  workdir = args.workdir or _new_workdir(args.config or 'base')
  if cfg.train.deterministic:
    xla_flags.repeat_bits()
  distributed.join(args)
  if not args.workdir and distributed.asked(args):
    raise UserError('several processes need a common --workdir; give one')

  from craft_jax.data.sources import cache_folder
  from craft_jax.runs import checkpoint
  from craft_jax.runs.writers import to_json
  from craft_jax.runtime import compilation_cache
  from craft_jax.runtime import distributed as distributed_lib
  from craft_jax.train.plan import advice
  from craft_jax.train.run import train

  checkpoint.quiet()
  compilation_cache.use(cache_folder(cfg.data))
  if args.auto_batch:
    cfg = _fitted(cfg, workdir, args.quiet)
  try:
    summary = train(cfg, workdir, quiet=args.quiet, interrupts=interrupts)
  except OutOfMemory as e:
    error, report_of_memory = advice.explained(e, cfg)
    if report_of_memory:
      print(report_of_memory, file=sys.stderr)
    raise error from e.__cause__
  if not distributed_lib.is_first():
    return 0
  summary |= {
    'wall_seconds': time.monotonic() - args.started,
    'workdir': workdir,
  }
  print(report(summary, cfg.train.steps))
  if args.json:
    print(strict_json.dumps(to_json(summary)))
  return 0


def _fitted(cfg: Config, workdir: str, quiet: bool) -> Config:
  """The config with as many micro-batches as its compiled step needs to fit.

  A run that goes on has as many as before, if they still fit: it is the same
  bit for bit.
  """
  from craft_jax.train.plan import compiled, compiled_text

  pieces = cfg.train.accumulate
  with contextlib.suppress(UserError):  # it is new, or damaged
    before = saved_config.load(workdir).train
    if before.batch_size == cfg.train.batch_size:
      pieces = max(pieces, before.accumulate)
  found = compiled.fitted(_accumulating(cfg, pieces))
  pieces = found.cfg.train.accumulate
  if not quiet:
    print(compiled_text.text(found), file=sys.stderr)
  if pieces != cfg.train.accumulate:
    print(
      f'craft: --config.train.accumulate={pieces}, micro-batches of '
      f'{cfg.train.batch_size // pieces}',
      file=sys.stderr,
    )
  return _accumulating(cfg, pieces)


def _accumulating(cfg: Config, pieces: int) -> Config:
  train = dataclasses.replace(cfg.train, accumulate=pieces)
  return dataclasses.replace(cfg, train=train)


def _config(args: argparse.Namespace) -> Config:
  """Loads the config in --config, or that of the run, or `base`."""
  saved = files.as_path(args.workdir or '') / layout.CONFIG
  if args.config is None and args.workdir and saved.is_file():
    return saved_config.changed(args.workdir, args.overrides)
  if args.config is None and args.parent:
    return saved_config.adapted(args.parent, args.overrides)
  return load_config(args.config or 'base', args.overrides)


def _new_workdir(spec: str) -> str:
  name = pathlib.Path(spec.partition(':')[0]).stem
  variant = spec.partition(':')[2]
  stamp = time.strftime('%Y%m%d-%H%M%S')
  return f'runs/{"-".join(filter(None, [name, variant, stamp]))}'


def report(summary: dict[str, Any], steps: int) -> str:
  """Formats the results of a run, with commands to try next."""
  lines = []
  if summary.get('sample'):
    lines += ['--- sample ---', summary['sample'], '--------------', '']
  score = [f'loss {summary["val_loss"]:.4f} nats']
  if summary['val_bpb'] is not None:
    score.append(f'{summary["val_bpb"]:.4f} bits per byte')
  if summary['val_bpc'] is not None:
    score.append(f'{summary["val_bpc"]:.4f} bits per character')
  lines.append(f'validation   {", ".join(score)}')
  if summary['val_withheld']:
    reason = summary['val_withheld']
    lines.append(f'             no bits per byte: {reason}')
  if summary.get('val_exact_match') is not None:
    from craft_jax.runs import metric_table  # it imports NumPy

    task = {k.removeprefix('val_'): v for k, v in summary.items()}
    rates = {name: task[name] for name in ('exact_match', 'cer', 'wer')}
    shown = ', '.join(metric_table.lines(rates))
    lines.append(f'completions  {shown} ({task["task_rows"]:,} prompts)')
  if summary['train_seconds']:
    speed = f'{summary["chars_per_second"]:,.0f} characters per second'
    if 'utilisation' in summary:
      speed += f', {summary["utilisation"]:.1%} of the peak FLOP/s'
    lines.append(f'speed        {speed}')
  lines.append(
    f'model        {summary["params"]:,} parameters, {summary["precision"]}, '
    f'{summary["devices"]} device(s), '
    f'{summary["flops_per_token"] / 1e6:,.1f} MFLOP per token'
  )
  lines.append(f'time         {summary["wall_seconds"]:.0f} s in total')
  workdir = summary['workdir']
  where = f'step {summary["step"]} of {steps} is saved in {workdir}'
  lines += [f'run          {where}', '', 'next:']
  if summary['step'] < steps:
    lines.append('  the same command without --stop-at-step continues the run')
  at, prompt = f'--workdir={workdir}', f'--prompt={summary.get("prompt", "")}'
  following = [['sample', at, prompt], ['eval', at]]
  if other := _beside(files.as_path(workdir)):
    following.append(['runs', 'compare', str(other), workdir])
  lines += [f'  {shlex.join([*_program(), *words])}' for words in following]
  return '\n'.join(lines)


def _beside(workdir: files.AnyPath) -> pathlib.Path | None:
  """The most recently ended other run in the same local folder, or None."""
  if not isinstance(workdir, pathlib.Path):
    return None
  ended = [
    path
    for path in workdir.parent.glob(f'*/{layout.SUMMARY}')
    if path.parent != workdir
  ]
  return (
    max(ended, key=lambda path: path.stat().st_mtime).parent if ended else None
  )


def _program() -> list[str]:
  """Command to type for `craft`, which may not be on the PATH."""
  if shutil.which('craft'):
    return ['craft']
  return [os.path.relpath(sys.executable), '-m', 'craft_jax.main']
