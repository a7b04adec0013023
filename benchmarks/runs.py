"""How long until hundreds of runs are listed and compared?

200 run directories of 100,000 rows each are made (about 5 GB, deleted in the
end), half of them with a third of the other half's evaluations. Then `craft
runs list` and `craft runs compare` are timed as processes, startup included:
`first` reads the rows of all runs for the first time, `list` and `compare` are
what follows, with the caches that the first one left. Files that the system
holds in memory stay there.

  python benchmarks/runs.py [--runs 200] [--rows 100000] [--folder /tmp]
"""

import argparse
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from typing import Any

import measure

from craft_jax.config.load import to_json
from craft_jax.config.settings import Config
from craft_jax.runs.layout import CONFIG, METADATA, METRICS

_BARS = {'list': 2.0, 'compare': 5.0}  # seconds, of 200 runs x 100,000 rows
_ROOT = pathlib.Path(__file__).parents[1]
_EVALUATE_EVERY = 1000  # rows
_SHAPES = 4  # different files; the others are copies of them


def row(step: int, level: float, noise: random.Random) -> dict[str, Any]:
  """A row of training, as `craft train` writes it."""
  loss = level + 3 / math.sqrt(step) + noise.gauss(0, 0.05)
  return {
    'step': step,
    'loss': loss,
    'nll': loss,
    'bpc': loss / math.log(2),
    'accuracy': 1 / (1 + loss),
    'learning_rate': 1e-3,
    'bpb': loss / math.log(2),
    'grad_norm': 0.5 + noise.random(),
    'update_norm': 0.01,
    'param_norm': 90.0 + noise.random(),
    'batch': noise.getrandbits(24),
    'chars_per_second': 1e5 + noise.gauss(0, 1e3),
    'data_wait_seconds': 0.0,
    'seconds': 0.05 * step + 10,
  }


def evaluation(step: int, level: float) -> dict[str, Any]:
  """A row of an evaluation."""
  loss = level + 3 / math.sqrt(step)
  part = {'share': 0.2, 'nats': loss, 'accuracy': 0.5}
  return {
    'step': step,
    'val_loss': loss,
    'val_bpc': loss / math.log(2),
    'val_bpb': loss / math.log(2),
    'val_withheld': '',
    'val_count': 111540.0,
    'val_accuracy': 0.5,
    'val_classes': dict.fromkeys(('letter', 'space', 'other'), part),
    'val_positions': [{'first': i, 'last': i, 'nats': loss} for i in range(9)],
    'seconds': 0.05 * step + 10,
  }


def make(folder: pathlib.Path, runs: int, rows: int) -> int:
  """Makes the run directories; returns the bytes of all rows."""
  noise, texts = random.Random(0), []
  for shape in range(_SHAPES):
    level, lines = 1.5 + 0.01 * shape, []
    every = _EVALUATE_EVERY * (1 if shape % 2 else 3)
    for step in range(1, rows + 1):
      lines.append(json.dumps(row(step, level, noise)))
      if step % every == 0 or step == rows:
        lines.append(json.dumps(evaluation(step, level)))
    texts.append('\n'.join(lines) + '\n')
  for number in range(runs):
    path = folder / f'run-{number:03}'
    path.mkdir()
    config = json.loads(to_json(Config(seed=number % 5)))
    config['model']['width'] = 64 * (1 + number // 5)
    (path / CONFIG).write_text(json.dumps(config))
    facts = {
      'status': 'finished',
      'params': 10_000 * (1 + number // 5),
      'tokens_per_step': 8192,
      'chars_per_token': 1.0,
      'flops_per_token': 1e6 * (1 + number // 5),
      'corpus_fingerprint': 'c',
      'vocabulary_fingerprint': 'v',
      'start_time': '2026-01-01T00:00:00+00:00',
    }
    (path / METADATA).write_text(json.dumps(facts))
    (path / METRICS).write_text(texts[number % _SHAPES])
  return sum((p / METRICS).stat().st_size for p in folder.iterdir())


def call(folder: pathlib.Path, *args: str) -> dict[str, float]:
  """Seconds of a process of `craft runs`."""
  paths = [str(_ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  command = [sys.executable, '-m', 'craft_jax.main', 'runs', *args, str(folder)]

  def run() -> None:
    subprocess.run(
      command,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(paths)},
      stdout=subprocess.DEVNULL,
      check=True,
    )

  return {'seconds': measure.seconds_of(run)}


def main() -> None:
  """Prints the seconds; the bars are 2 for the list and 5 to compare."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--pairs', type=int, default=5, help='rounds')
  parser.add_argument('--runs', type=int, default=200)
  parser.add_argument('--rows', type=int, default=100_000)
  parser.add_argument('--folder', help='where the runs are made')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.folder) as name:
    folder = pathlib.Path(name)
    size = make(folder, args.runs, args.rows)
    first = {
      'first list': [call(folder, 'list')],
      'first compare': [call(folder, 'compare')],
    }
    found = measure.in_turns(
      {
        'list': lambda: call(folder, 'list'),
        'compare': lambda: call(folder, 'compare'),
      },
      args.pairs,
    )
  measure.report_seconds(
    f'How long are {args.runs} runs x {args.rows:,} rows '
    f'({size / 1e9:.1f} GB) listed and compared?',
    found | first,
    _BARS,
    len(os.sched_getaffinity(0)),
  )


if __name__ == '__main__':
  main()
