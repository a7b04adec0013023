"""Runs as processes of their own: starting, stopping, devices for each."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from craft_jax.errors import UserError
from craft_jax.runtime.signals import as_child


class Process:
  """A `craft train` that runs.

  Attributes:
    name: of the run.
    slot: which share of the devices it has.
    log: what it prints.
    begin: when it was started, on the monotonic clock.
    stopping: whether it was asked to save and end.
  """

  def __init__(
    self,
    name: str,
    flags: Sequence[str],
    log: pathlib.Path,
    slot: int = 0,
    environment: Mapping[str, str] | None = None,
  ):
    """Starts it.

    Args:
      name: of the run.
      flags: of `craft train`.
      log: is added to; its folder is made.
      slot: kept.
      environment: beside that of this process.
    """
    self.name, self.slot, self.log = name, slot, log
    self.begin = time.monotonic()
    self.stopping = False
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'ab') as output:
      self._offset = output.tell()
      # In a session of its own: Ctrl-C reaches the sweep alone, which passes
      # it on once.
      self._process = subprocess.Popen(
        command(flags),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | as_child() | dict(environment or {}),
        start_new_session=True,
      )

  def code(self) -> int | None:
    """The exit code, negative for a signal; None while it runs."""
    return self._process.poll()

  def stop(self) -> None:
    """Asks it to save and end. Repeatable: it is asked once."""
    if not self.stopping:
      self.stopping = True
      self._process.send_signal(signal.SIGTERM)

  def kill(self) -> None:
    """Ends it at once; what is saved stays whole."""
    self._process.kill()
    self._process.wait()

  def last_words(self) -> str:
    """The last line that says what went wrong, or the last line."""
    with open(self.log, encoding='utf-8', errors='replace') as file:
      file.seek(self._offset)
      lines = [line.strip() for line in file if line.strip()]
    said = [line for line in lines if line.startswith('craft: ')]
    words = (said or lines or ['it printed nothing'])[-1]
    return words.removeprefix('craft: ')


def command(flags: Sequence[str]) -> list[str]:
  """`craft train` with flags, by the same Python."""
  return [sys.executable, '-m', 'craft_jax.main', 'train', *flags]


def shares(jobs: int) -> tuple[list[dict[str, str]], str]:
  """The environment of each of several runs at a time, and a warning or ''.

  GPUs are dealt out; where there are fewer than runs, and on a CPU, the
  devices are shared.

  Args:
    jobs: runs at a time.

  Raises:
    UserError: it is below 1.
  """
  if jobs < 1:
    raise UserError(f'--jobs={jobs} must be at least 1')
  if jobs == 1:
    return [{}], ''
  gpus = _gpus()
  if len(gpus) >= jobs:
    each = len(gpus) // jobs
    return [
      {'CUDA_VISIBLE_DEVICES': ','.join(gpus[i * each : (i + 1) * each])}
      for i in range(jobs)
    ], ''
  what = f'{len(gpus)} GPU(s)' if gpus else 'the devices of this machine'
  advice = ''
  if gpus:
    advice = (
      '; each takes 3/4 of the memory: set XLA_PYTHON_CLIENT_MEM_FRACTION'
    )
  return [
    {'CUDA_VISIBLE_DEVICES': gpus[i % len(gpus)]} if gpus else {}
    for i in range(jobs)
  ], f'{jobs} runs at a time share {what}: each is slower{advice}'


def _gpus() -> list[str]:
  """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them.

  JAX is not asked: it would take them.
  """
  if os.environ.get('JAX_PLATFORMS', '').startswith('cpu'):
    return []
  named = os.environ.get('CUDA_VISIBLE_DEVICES')
  if named is not None:
    return [name.strip() for name in named.split(',') if name.strip()]
  program = shutil.which('nvidia-smi')
  if program is None:
    return []
  try:
    done = subprocess.run(
      [program, '--list-gpus'], capture_output=True, text=True, timeout=30
    )
  except (OSError, subprocess.TimeoutExpired):
    return []
  lines = [x for x in done.stdout.splitlines() if x.startswith('GPU ')]
  return [str(i) for i in range(len(lines))] if not done.returncode else []
