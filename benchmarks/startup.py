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

`--commands` asks what it costs to start with a trained model instead: the
processor time, user and system, of whole commands on a run of `base` after ten
steps, cold and warm. `load` is `craft_jax.load` and 64 characters from Python.
The evaluation is of a text of a few kilobytes, for most of its time would be
spent on what is evaluated.

  python benchmarks/startup.py [--data tinyshakespeare.txt] [--pairs 7]
  python benchmarks/startup.py --commands [--pairs 3]
"""

import functools
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import measure

from craft_jax.config.load import load_config
from craft_jax.data.sources import cache_folder, open_source
from craft_jax.runs.layout import CONFIG, METRICS, SUMMARY
from craft_jax.runs.lock import LOCK

_BARS = {'cold': 12.0, 'warm': 5.0}  # seconds
_WARM_BAR = 0.5  # of the processor time of a cold start
_LOAD = (
  'import craft_jax, sys; '
  "craft_jax.load(sys.argv[1]).generate('def ', max_chars=64)"
)
_LOOK_SECONDS = 0.005
_ROOT = pathlib.Path(__file__).parents[1]
# What would lead a run past the caches that are given to it, and past the
# bytecode that an installed package has.
_ELSEWHERE = (
  'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE',
  'PYTHONDONTWRITEBYTECODE',
)  # fmt: skip


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


def _processor_seconds(words: Sequence[str], caches: pathlib.Path) -> float:
  """User and system time of Python with these words."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  subprocess.run(
    [sys.executable, *words],
    env=environment(caches),
    stdout=subprocess.DEVNULL,
    check=True,
  )
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(pairs: int) -> None:
  """Prints the processor seconds of commands that load a trained model."""
  with tempfile.TemporaryDirectory() as folder:
    warm = pathlib.Path(folder, 'caches')
    text = pathlib.Path(folder, 'text.txt')
    text.write_text('def square(x):\n  return x * x\n\n' * 400)
    craft, workdir = ('-m', 'craft_jax.main'), os.path.join(folder, 'run')
    train = [*craft, 'train', '--config=base', f'--workdir={workdir}',
             '--quiet', '--config.data.source=path',
             f'--config.data.path={text}', '--config.data.split=fraction',
             '--config.train.steps=10']  # fmt: skip
    _processor_seconds(train, warm)
    where = f'--workdir={workdir}'
    programs = {
      'sample': [*craft, 'sample', where, '--prompt=def ', '--max-chars=64'],
      'eval': [*craft, 'eval', where],
      'score': [*craft, 'score', where, f'--file={text}'],
      'load': ['-c', _LOAD, workdir],
    }

    def cold(words: Sequence[str]) -> float:
      with tempfile.TemporaryDirectory() as caches:
        return _processor_seconds(words, pathlib.Path(caches))

    variants: dict[str, Callable[[], float]] = {}
    for name, words in programs.items():
      variants[f'{name}, cold'] = functools.partial(cold, words)
      variants[f'{name}, warm'] = functools.partial(
        _processor_seconds, words, warm
      )
    found = measure.in_turns(variants, pairs)
  measure.report(
    'What does it cost to start with a trained model?',
    found,
    {name: name.replace('warm', 'cold') for name in variants},
    bars={name: _WARM_BAR for name in variants if 'warm' in name},
    unit='ms',
    case='commands',
  )


def main() -> None:
  """Prints the seconds; the bars are 12 cold and 5 warm."""
  parser = measure.arguments(__doc__ or '', 7)
  parser.add_argument(
    '--commands', action='store_true', help='commands on a trained model'
  )
  args = parser.parse_args()
  if args.commands:
    commands(args.pairs)
    return
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
