"""When does it pay to adapt a model rather than to train one on little text?

The little text is the first tenth of tinyshakespeare, and all are evaluated on
its last tenth. `adapted` starts from a run of `configs/base.py`, which has read
Python's standard library; `alone` reads nothing but the little text, for as
many steps as the adaptation or as both runs together; `mixed` reads both texts
from the start, half of each, for as many steps as both runs. Bits per byte of
the best evaluation (one every 50 steps), mean over the seeds.

  python benchmarks/adapting.py [--data tinyshakespeare.txt] [--seeds 3]
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import measure

from craft_jax.config.load import load_config
from craft_jax.data import sources
from craft_jax.data.prepare import open_corpus
from craft_jax.runs import listing

_BASE, _MORE = 1200, 300  # steps


def train(workdir: pathlib.Path, *flags: str) -> listing.Run:
  """A finished run; one that was begun goes on."""
  subprocess.run(
    [
      sys.executable, '-m', 'craft_jax.main', 'train', f'--workdir={workdir}',
      '--quiet', *flags,
    ],
    check=True,
    stdout=subprocess.DEVNULL,
  )  # fmt: skip
  return listing.load(workdir)


def texts(folder: pathlib.Path, path: str | None) -> dict[str, str]:
  """Writes the texts; returns the flags that read them, by variant."""
  wanted = load_config('shakespeare', [f'data.path={path}'] if path else [])
  (document,) = sources.open_source(wanted.data).parts['all']
  text = document.read()
  tenth = len(text) // 10
  base = open_corpus(load_config('base'))
  code = base.vocabulary.decode_bytes(base.train.tokens)
  files = {
    'little.txt': text[:tenth],
    'both.txt': code + text[:tenth] * (len(code) // tenth),
    'valid.txt': text[-tenth:],
  }
  for name, data in files.items():
    (folder / name).write_bytes(data)
  return {
    name: [
      f'--config.data.path={folder / name}.txt', '--config.data.source=path',
      '--config.data.split=given',
      f'--config.data.valid_path={folder / "valid.txt"}',
    ]
    for name in ('little', 'both')
  }  # fmt: skip


def figures(runs: Sequence[listing.Run]) -> dict[str, float | None]:
  """Bits per byte at the best evaluation, and when that was."""
  values = [run.facts['bpb'] for run in runs]
  return {
    'bits_per_byte': statistics.mean(values),
    'deviation': statistics.stdev(values) if len(values) > 1 else None,
    'best_step': statistics.median(run.facts['best_step'] for run in runs),
    'steps': runs[0].facts['steps'],
    'seconds': statistics.mean(run.facts['seconds'] for run in runs),
    'bar': None,
  }


def main() -> None:
  """Prints a table, then one JSON object."""
  parser = measure.arguments(__doc__ or '')
  parser.add_argument('--seeds', type=int, default=3, help='(default: 3)')
  parser.add_argument(
    '--folder', help='keeps texts and runs, to go on with after an interruption'
  )
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.folder or temporary)
    folder.mkdir(parents=True, exist_ok=True)
    flags = texts(folder, args.data)
    often = ('--config.eval.every=50', '--config.log.sample_chars=0')
    runs: dict[str, list[listing.Run]] = {}

    def add(name: str, seed: int, *more: str) -> None:
      path = folder / f'{name.replace(", ", "-").replace(" ", "-")}-{seed}'
      run = train(path, f'--config.seed={seed}', *often, *more)
      runs.setdefault(name, []).append(run)

    for seed in range(args.seeds):
      start = folder / f'base-{seed}'
      train(start, '--config=base', f'--config.seed={seed}')
      add(
        'adapted', seed, f'--from={start}', *flags['little'],
        f'--config.train.steps={_MORE}',
      )  # fmt: skip
      for steps in (_MORE, _BASE + _MORE):
        add(
          f'alone, {steps} steps', seed, '--config=base', *flags['little'],
          f'--config.train.steps={steps}',
        )  # fmt: skip
      add(
        'mixed', seed, '--config=base', *flags['both'],
        f'--config.train.steps={_BASE + _MORE}',
      )  # fmt: skip
  found = {name: figures(several) for name, several in runs.items()}
  print(f'{"":20}{"bits per byte":>14}{"deviation":>11}{"best step":>11}'
        f'{"seconds":>9}')  # fmt: skip
  for name, row in found.items():
    deviation = row['deviation']
    print(
      f'{name:20}{row["bits_per_byte"]:14.4f}'
      f'{"-" if deviation is None else format(deviation, ".4f"):>11}'
      f'{row["best_step"]:11,.0f}{row["seconds"]:9.0f}'
    )
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    args.seeds,
    found,
    bars='bits_per_byte at most',
  )


if __name__ == '__main__':
  main()
