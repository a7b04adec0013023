"""Real `craft` processes for the tests of this folder."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from craft_jax.runs import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
TEXT = ''.join(f'{i} squared is {i * i}; ' for i in range(600))


SAMPLED = ('log.sample_chars=8', 'log.sample_prompt=1')


def flags(text: pathlib.Path, *more: str) -> list[str]:
  """A run of seconds, with everything in it that must be kept.

  Without samples, which take as long as the training; `SAMPLED` adds them.
  """
  return [
    '--config=text', f'--config.data.path={text}',
    '--config.model.context=16', '--config.model.width=16',
    '--config.model.depth=2', '--config.model.num_heads=2',
    '--config.model.precision=float32', '--config.model.dropout=0.1',
    '--config.train.steps=60', '--config.train.batch_size=8',
    '--config.train.ema=0.9', '--config.train.steps_per_call=4',
    '--config.optim.warmup_steps=2', '--config.eval.batch_size=16',
    '--config.eval.every=20', '--config.checkpoint.every=10',
    '--config.log.every=1', '--config.log.sample_chars=0',
    *(f'--config.{item}' for item in more),
  ]  # fmt: skip


# Where to be slow, so that a short run can be hit there: after a dispatch, in
# the compilation, in an evaluation, between a commit and its check; or only to
# be told that a signal has been handled.
SLOW = {
  'steps': ('craft_jax.train.step_metrics', 'Pace', 'finished', 0.1),
  'compile': ('craft_jax.train.setup', 'Setup', 'compile', 4.0),
  'evaluate': ('craft_jax.inference.evaluate', 'Evaluator', '_put', 0.2),
  'save': ('craft_jax.runs.checkpoint.writer', 'Checkpointer', '_verify', 2.0),
  'signal': ('craft_jax.runtime.signals', 'Interrupts', '_on_signal', 0.0),
}
_SLOWED = """
import importlib, os, pathlib, time
def slow(phase, module, owner, name, seconds):
  module = importlib.import_module(module)
  owner = getattr(module, owner) if owner else module
  whole = getattr(owner, name)
  def slowly(*args):
    if 'MARKS' in os.environ:
      (pathlib.Path(os.environ['MARKS']) / phase).touch()
    time.sleep(seconds)
    return whole(*args)
  setattr(owner, name, slowly)
"""


def start(*arguments: str, slow: Sequence[str] = (), first: str = '', **kwargs):
  """`craft ARGUMENTS`, at some places slowly; nothing is replaced.

  In the folder that `$MARKS` names, a file tells that a slow place is reached.
  `first` is Python that the process runs first.
  """
  environment = {
    **os.environ,
    'XLA_FLAGS': os.environ['QUICK_XLA_FLAGS'],
    'PYTHONPATH': str(ROOT),
    **kwargs.pop('env', {}),
  }
  program = ['-m', 'craft_jax.main']
  if slow or first:
    calls = [f'slow{(phase, *SLOW[phase])!r}' for phase in slow]
    end = 'from craft_jax import main\nmain.console()'
    program = ['-c', '\n'.join([first, _SLOWED, *calls, end])]
  return subprocess.Popen(
    [sys.executable, *program, *arguments],
    stdout=kwargs.pop('stdout', subprocess.PIPE),
    stderr=kwargs.pop('stderr', subprocess.PIPE),
    text=True,
    env=environment,
    **kwargs,
  )


def whole(folder: pathlib.Path, text: pathlib.Path, *more: str) -> pathlib.Path:
  """The run directory of a run that nothing disturbs."""
  workdir = folder / 'run'
  process = start('train', *flags(text, *more), f'--workdir={workdir}')
  stderr = finish(process)
  assert process.returncode == 0, stderr
  return workdir


def finish(process: subprocess.Popen, seconds: float = 240) -> str:
  """Awaits the end; the standard error. Kills what hangs."""
  try:
    return process.communicate(timeout=seconds)[1]
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGABRT)
    process.kill()
    raise


def wait_until(
  condition: Callable[[], bool],
  process: subprocess.Popen,
  seconds: float = 120,
) -> None:
  """Until the condition holds; fails if the process ends before."""
  deadline = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def rows(workdir: pathlib.Path) -> list[dict]:
  """The whole rows of the metrics file; [] where there is none yet."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


# What differs between two runs of the same program.
_CLOCKS = {
  'chars_per_second', 'data_wait_seconds', 'seconds', 'utilisation',
}  # fmt: skip


def repeatable(workdir: pathlib.Path) -> list[dict]:
  """The rows without what a clock says."""
  return [
    {k: v for k, v in row.items() if k not in _CLOCKS} for row in rows(workdir)
  ]


def column(workdir: pathlib.Path, key: str) -> dict:
  """The values of a key by step."""
  return {row['step']: row[key] for row in rows(workdir) if key in row}


def same_course(workdir: pathlib.Path, other: pathlib.Path) -> None:
  """Asserts equal batches, and losses equal but for rounding.

  Sums are taken in another order, which 60 steps enlarge.
  """
  assert column(workdir, 'batch') == column(other, 'batch')
  for key in ('loss', 'val_loss'):
    got, want = column(workdir, key), column(other, key)
    assert list(want) == list(got)
    np.testing.assert_allclose(
      list(got.values()), list(want.values()), rtol=2e-4
    )


def digests(workdir: pathlib.Path) -> list:
  """Step and sha256 of parameters, optimizer state and average."""
  found = checkpoint.report(workdir)
  names = ('step', 'params_sha256', 'opt_state_sha256', 'ema_sha256')
  return [found[name] for name in names]


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start_together(
  count: int,
  arguments: Sequence[str],
  each: dict[int, list[str]] | None = None,
  first: Callable[[int], str] = lambda i: '',
) -> list[subprocess.Popen]:
  """`count` processes of one run over loopback.

  `each` adds flags to some; `first` gives Python that process i runs first.
  """
  port = free_port()
  return [
    start(
      *arguments,
      f'--coordinator=127.0.0.1:{port}',
      f'--num-processes={count}',
      f'--process-id={i}',
      *(each or {}).get(i, []),
      first=first(i),
      stdout=subprocess.PIPE,
    )
    for i in range(count)
  ]
