"""How long from the start of a process to the end of its first training step?

Runs of `craft train --config=shakespeare_cpu`, alternately cold (the folders of
compiled programs and prepared corpora are empty) and warm (an earlier run has
filled them). Files that the system holds in memory stay there for both.

A run stops after one step, whose row in metrics.jsonl marks its end: it is
written once the step's figures are on the host. The compiled program is that of
a whole run, as the number of steps is an argument of it. The evaluation and the
save at the end come later and are not counted; the sample is left out.

The parts are what the run shows from outside: `import` ends with the lock of
its folder (modules loaded, devices up), `prepare` with config.json (the corpus
is open), `state` with an empty metrics.jsonl (parameters on the devices);
`compile` is from its summary, and `first step` is the rest.

  python benchmarks/startup.py [--data tinyshakespeare.txt] [--pairs 7]
"""

import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import measure

from craft_jax.config import load_config
from craft_jax.data.sources import cache_folder, open_source
from craft_jax.track.layout import CONFIG, METRICS, SUMMARY
from craft_jax.track.lock import LOCK

_BARS = {'cold': 12.0, 'warm': 5.0}  # seconds
_LOOK_SECONDS = 0.005
_ROOT = pathlib.Path(__file__).parents[1]
# What would lead a run past the caches that are given to it.
_ELSEWHERE = ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE')


def environment(caches: pathlib.Path) -> dict[str, str]:
  """Of a process whose caches are there and nowhere else."""
  kept = {k: v for k, v in os.environ.items() if k not in _ELSEWHERE}
  paths = [str(_ROOT), *filter(None, [kept.get('PYTHONPATH')])]
  return kept | {
    'CRAFT_CACHE': str(caches),
    'PYTHONPATH': os.pathsep.join(paths),
  }


def _seen(
  process: subprocess.Popen[bytes], marks: dict[str, Callable[[], bool]]
) -> dict[str, float]:
  """When (`time.perf_counter`) each mark is there, until the process ends."""
  seen: dict[str, float] = {}
  while len(seen) < len(marks):
    ended = process.poll() is not None
    for name, is_there in marks.items():
      if name not in seen and is_there():
        seen[name] = time.perf_counter()
    if ended:
      break
    time.sleep(_LOOK_SECONDS)
  return seen


def start(caches: pathlib.Path, flags: Sequence[str]) -> dict[str, Any]:
  """Trains one step in a process of its own; its parts and its summary."""
  with tempfile.TemporaryDirectory() as folder:
    workdir, errors = pathlib.Path(folder, 'run'), pathlib.Path(folder, 'err')
    metrics = workdir / METRICS
    marks = {
      'import': (workdir / LOCK).exists,
      'prepare': (workdir / CONFIG).exists,
      'state': metrics.exists,
      'first step': lambda: metrics.exists() and metrics.stat().st_size > 0,
    }
    command = [sys.executable, '-m', 'craft_jax.main', 'train', '--quiet',
               '--config=shakespeare_cpu', f'--workdir={workdir}',
               *flags]  # fmt: skip
    with open(errors, 'wb') as stderr:
      begin = time.perf_counter()
      process = subprocess.Popen(
        command,
        env=environment(caches),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
      )
      try:
        seen = _seen(process, marks)
        process.wait()
      finally:
        process.kill()  # nothing is left behind at an interrupt
    if process.returncode or len(seen) < len(marks):
      text = errors.read_text(errors='replace')[-2000:]
      raise RuntimeError(f'{command} ended with {process.returncode}:\n{text}')
    summary = json.loads((workdir / SUMMARY).read_text())
  times = [begin, *(seen[name] for name in marks)]
  steps = [after - before for before, after in itertools.pairwise(times)]
  parts = dict(zip(marks, steps, strict=True))
  first = parts.pop('first step') - summary['compile_seconds']
  return {
    'parts': parts
    | {'compile': summary['compile_seconds'], 'first step': first},
    'devices': summary['devices'],
  }


def _flags(settings: list[str]) -> list[str]:
  """Of a run of one step; the text is downloaded now if it is needed."""
  cfg = load_config('shakespeare_cpu', settings)
  if not cfg.data.path:
    open_source(cfg.data)
    text = cache_folder(cfg.data) / 'downloads' / 'tinyshakespeare.txt'
    settings = [*settings, f'data.path={text}']
  settings = [*settings, 'train.stop_at_step=1', 'log.sample_chars=0']
  return [f'--config.{setting}' for setting in settings]


def main() -> None:
  """Prints the seconds; the bars are 12 cold and 5 warm."""
  args = measure.arguments(__doc__ or '', 7).parse_args()
  flags = _flags(measure.overrides(args))

  def cold() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as caches:
      return start(pathlib.Path(caches), flags)

  with tempfile.TemporaryDirectory() as caches:
    # Filled in the first round, which is not counted.
    warm = functools.partial(start, pathlib.Path(caches), flags)
    found = measure.in_turns({'cold': cold, 'warm': warm}, args.pairs)
  measure.report_seconds(
    'How long until the end of the first step of shakespeare_cpu?',
    {name: [run['parts'] for run in runs] for name, runs in found.items()},
    _BARS,
    found['warm'][0]['devices'],
  )


if __name__ == '__main__':
  main()
