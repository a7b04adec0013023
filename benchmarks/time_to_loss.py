"""How many seconds until a model is good, everything included?

From the start of the process until the loss on the whole validation split of
tinyshakespeare is at most 1.88, and at most 1.6: imports, reading the text,
compilation (the caches of Craft are empty), training, evaluation. For 1.88
Craft runs `craft train --config=shakespeare_cpu:seconds`, which evaluates at
its end, and for 1.6 `shakespeare_cpu`, every 250 steps. The peer is the same
size in PyTorch by nanoGPT's documented recipe (peers/torch_recipe.py),
evaluated every 250 steps, eager, which on a CPU starts sooner than compiled. A
peer that has not come so low by the end of its 2,000 steps is said to take
longer.

  python benchmarks/time_to_loss.py --data tinyshakespeare.txt [--pairs 3]
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import measure
import startup

_PEER = pathlib.Path(__file__).parent / 'peers' / 'torch_recipe.py'
_CONFIGS = {'craft, seconds': 'shakespeare_cpu:seconds',
            'craft': 'shakespeare_cpu'}  # fmt: skip
_EVERY = {'craft, seconds': 0, 'craft': 250}  # steps


class _Goal(NamedTuple):
  """Attributes: name: whose run; bar: how many times as soon."""

  name: str
  bar: float | None


_GOALS = {1.88: _Goal('craft, seconds', 5.0), 1.6: _Goal('craft', None)}


def craft(
  name: str, text: str, seed: int, flags: Sequence[str]
) -> list[dict[str, Any]]:
  """The evaluations of a run with empty caches."""
  with tempfile.TemporaryDirectory() as folder:
    command = [
      sys.executable, '-m', 'craft_jax.main', 'train', '--quiet',
      f'--config={_CONFIGS[name]}', f'--workdir={folder}/run',
      f'--config.data.path={text}', f'--config.seed={seed}',
      f'--config.eval.every={_EVERY[name]}',
      '--config.log.sample_chars=0', *flags,
    ]  # fmt: skip
    metrics = pathlib.Path(folder, 'run', 'metrics.jsonl')
    environment = startup.environment(pathlib.Path(folder, 'caches'))
    began, rows = time.time(), {}
    with subprocess.Popen(
      command, env=environment, stdout=subprocess.DEVNULL
    ) as process:
      while process.poll() is None:
        for row in _evaluations(metrics):
          rows.setdefault(row['step'], row | {'seconds': time.time() - began})
        time.sleep(0.05)
    if process.returncode:
      raise RuntimeError(f'{command} ended with {process.returncode}')
    for row in _evaluations(metrics):
      rows.setdefault(row['step'], row | {'seconds': time.time() - began})
    return list(rows.values())


def _evaluations(metrics: pathlib.Path) -> list[dict[str, Any]]:
  if not metrics.exists():
    return []
  *lines, _ = metrics.read_text().split('\n')  # the last may be half written
  rows = [json.loads(line) for line in lines if '"val_loss"' in line]
  return [{'step': r['step'], 'val_loss': r['val_loss']} for r in rows]


def peer(text: str, seed: int, *flags: str) -> list[dict[str, Any]]:
  """The evaluations of a run of the recipe in PyTorch."""
  command = [sys.executable, str(_PEER), text, f'--seed={seed}',
             f'--began={time.time()}', *flags]  # fmt: skip
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return [json.loads(line) for line in done.stdout.splitlines()]


def reached(rows: Sequence[Mapping[str, Any]], loss: float) -> float | None:
  """Seconds until the first evaluation of at most `loss`."""
  return next((r['seconds'] for r in rows if r['val_loss'] <= loss), None)


def main() -> None:
  """Prints what each run came to, then one JSON object."""
  parser = measure.arguments(__doc__ or '', 3)
  args = parser.parse_args()
  if not args.data:
    parser.error('give the text: --data tinyshakespeare.txt')
  flags = [f'--config.{setting}' for setting in args.set]
  runs: dict[str, list[list[dict[str, Any]]]] = {
    name: [] for name in (*_CONFIGS, 'torch')
  }
  for seed in range(args.pairs):
    for name in _CONFIGS:
      runs[name].append(craft(name, args.data, seed, flags))
    runs['torch'].append(peer(args.data, seed))
    for name, found in runs.items():
      last = found[-1][-1]
      print(
        f'seed {seed} {name:15}{last["val_loss"]:8.4f} after '
        f'{last["seconds"]:.1f} s',
        file=sys.stderr,
      )
  rows = _rows(runs)
  print(f'Seconds until a validation loss; {measure.hardware()}')
  print(f'{"":24}{"craft":>9}{"torch":>9}{"ratio":>8}{"bar":>6}')
  for name, row in rows.items():
    sign = '' if row['torch_reached'] else '>'
    print(
      f'{name:24}{row["craft"] or float("nan"):9.1f}'
      f'{sign + format(row["torch"], ".1f"):>9}{row["speedup"] or 0:8.2f}'
      f'{row["bar"] or "":>6}'
    )
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    args.pairs,
    rows,
    bars='speedup at least',
    evaluations=runs,
  )


def _rows(
  runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
) -> dict[str, dict[str, Any]]:
  rows = {}
  for loss, (name, bar) in _GOALS.items():
    ours = [reached(run, loss) for run in runs[name]]
    theirs = [reached(run, loss) for run in runs['torch']]
    # A run that never came so low took longer than it ran.
    least = [
      run[-1]['seconds'] if seconds is None else seconds
      for run, seconds in zip(runs['torch'], theirs, strict=True)
    ]
    all_there = None not in ours
    seconds = statistics.median(ours) if all_there else None
    rows[f'loss {loss}'] = {
      'craft': seconds,
      'torch': statistics.median(least),
      'torch_reached': None not in theirs,
      'speedup': statistics.median(
        t / o for t, o in zip(least, ours, strict=True)
      )
      if all_there
      else None,
      'bar': bar,
    }
  return rows


if __name__ == '__main__':
  main()
