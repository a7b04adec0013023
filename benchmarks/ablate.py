"""What does each part of the training recipe bring?

tinyshakespeare at nanoGPT's CPU size (`shakespeare_cpu`), in two groups: every
ingredient of the recipe added alone to a plain baseline, nanoGPT's block with
its AdamW and schedule, and every one removed alone from the whole recipe. Each
run is a `craft train` in a process of its own; the loss is that of the whole
validation split at the end. Seeds come one after the other, so that the runs
that a row compares are as close in time as they can be.

A finished run is a line of results/DEVICE/ablate.jsonl and is not run again, as
long as its settings are what they were. `--write docs/recipe.md` runs nothing:
it writes what is kept into the page.

  python benchmarks/ablate.py --data tinyshakespeare.txt [--only Muon,RoPE]
  python benchmarks/ablate.py --write docs/recipe.md
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import measure
import recipe
import startup

from craft_jax.config.load import load_config
from craft_jax.data.sources import cache_folder
from craft_jax.runtime.files import write_atomic

_SEEDS = '1,2,3'


def train(
  overrides: recipe.Settings, more: Sequence[str], seed: int, text: str
) -> dict[str, Any] | None:
  """The summary of a run in a process of its own; None if it failed.

  What went wrong is on standard error then.

  Args:
    overrides: of the variant.
    more: further settings, `name=value`.
    seed: of the run.
    text: its path; '' is the download of the config.
  """
  flags = [*recipe.assigned(overrides), *more, f'seed={seed}']
  flags += ['log.sample_chars=0', *([f'data.path={text}'] if text else [])]
  caches = cache_folder(load_config(recipe.CONFIG, flags).data)
  with tempfile.TemporaryDirectory() as folder:
    command = [
      sys.executable, '-m', 'craft_jax.main', 'train', '--quiet', '--json',
      f'--config={recipe.CONFIG}', f'--workdir={folder}/run',
      *(f'--config.{flag}' for flag in flags),
    ]  # fmt: skip
    done = subprocess.run(
      command,
      env=startup.environment(caches),
      stdout=subprocess.PIPE,
      text=True,
    )
  return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def run_missing(args: argparse.Namespace, path: pathlib.Path) -> bool:
  """Runs what is not kept yet, one run after the other; whether all went well.

  A run that fails is left out with a line, and is tried again next time.
  """
  more, text_hash = _more(args), recipe.hash_of(args.data)
  found = recipe.kept_runs(path, more, text_hash)
  wanted = [
    (seed, name)
    for seed in args.seeds
    for name in recipe.chosen(args.only)
    if seed not in found[name]
  ]
  failed = False
  path.parent.mkdir(parents=True, exist_ok=True)
  for i, (seed, name) in enumerate(wanted, 1):
    overrides = recipe.variants()[name]
    summary = train(overrides, more, seed, args.data)
    if summary is None:
      failed, said = True, 'failed, left out'
    else:
      record = {'variant': name, 'seed': seed, 'text': text_hash}
      record |= _figures(summary)
      record['settings'] = recipe.settings_of(overrides, more)
      with open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(record) + '\n')
      said = (
        f'{record["val_loss"]:.4f} nats, {record["milliseconds"]:.1f} ms a step'
      )
    print(
      f'{i} of {len(wanted)}: {name}, seed {seed}: {said}',
      file=sys.stderr,
      flush=True,
    )
  return not failed


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'val_loss': summary['val_loss'],
    'milliseconds': 1e3 * summary['train_seconds'] / summary['step'],
    'params': summary['params'],
    'devices': summary['devices'],
    'jax': jax.__version__,
  }


def _arguments() -> argparse.Namespace:
  parser = measure.arguments(__doc__ or '')
  parser.set_defaults(data='')
  parser.add_argument(
    '--steps',
    type=int,
    default=recipe.STEPS,
    help=f'of a run (default: {recipe.STEPS})',
  )
  parser.add_argument(
    '--seeds',
    type=lambda text: [int(seed) for seed in text.split(',')],
    default=_SEEDS,
    help=f'of each variant (default: {_SEEDS})',
  )
  parser.add_argument(
    '--only', default='', help='variants with one of these in their name'
  )
  parser.add_argument(
    '--kept',
    metavar='FILE',
    help=f'finished runs (default: results/DEVICE/{recipe.KEPT})',
  )
  parser.add_argument(
    '--write', metavar='PAGE', help='run nothing, refresh this page'
  )
  return parser.parse_args()


def _more(args: argparse.Namespace) -> list[str]:
  return [f'train.steps={args.steps}', *args.set]


def _kept(args: argparse.Namespace) -> pathlib.Path:
  """Where finished runs are; the device is asked in a process that ends.

  The runs need the memory of a GPU, which this process would take.
  """
  if args.kept:
    return pathlib.Path(args.kept)
  command = [sys.executable, str(measure.__file__)]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return recipe.RESULTS / done.stdout.strip() / recipe.KEPT


def main() -> None:
  """Runs what is missing; prints the tables, then one JSON object."""
  args = _arguments()
  if args.write:
    page = pathlib.Path(args.write)
    write_atomic(page, recipe.refreshed(page.read_text(encoding='utf-8')))
    return
  path = _kept(args)
  complete = run_missing(args, path)
  found = recipe.kept_runs(path, _more(args), recipe.hash_of(args.data))
  asked = {
    name: {seed: by_seed[seed] for seed in args.seeds if seed in by_seed}
    for name, by_seed in found.items()
  }
  rows: dict[str, dict[str, Any]] = {}
  for group in recipe.GROUPS.values():
    rows |= recipe.rows_of(group, asked)
    if text := recipe.table(group, asked):
      print(f'{text}\n')
  runs = [run for by_seed in asked.values() for run in by_seed.values()]
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    len(args.seeds),
    rows,
    bars='gain at least',
    steps=args.steps,
    devices=max((run['devices'] for run in runs), default=0),
  )
  if not complete:
    sys.exit(1)


if __name__ == '__main__':
  main()
