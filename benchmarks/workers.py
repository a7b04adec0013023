"""Processes that a benchmark asks one after the other (see peers/worker.py)."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PEERS = pathlib.Path(__file__).parent / 'peers'
# Several of them, and the benchmark itself, share one accelerator: JAX is to
# take of its memory what it needs. Inherited, and read when JAX asks for a
# device.
os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'


class Worker:
  """One such process. `facts`: what it said once it was warm."""

  def __init__(self, script: str, arguments: Sequence[str]):
    """Args:
    script: a file of peers/, without `.py`.
    arguments: its command line.
    """
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115, see close
    self._process = subprocess.Popen(
      [sys.executable, str(PEERS / f'{script}.py'), *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )
    self.facts = self._answer()
    self.peak_bytes = 0

  def __call__(self) -> float:
    """Has it work once; the seconds that took."""
    assert self._process.stdin
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    answer = self._answer()
    self.peak_bytes = answer['peak_bytes']
    return answer['seconds']

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout
    for line in self._process.stdout:
      with contextlib.suppress(ValueError):  # a library has its say, too
        answer = json.loads(line)
        if isinstance(answer, dict):
          return answer
    self._errors.seek(0)
    tail = self._errors.read()[-2000:]
    raise RuntimeError(f'{self._process.args} ended early:\n{tail}')

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()
    self._errors.close()


@contextlib.contextmanager
def opened(
  commands: Mapping[str, tuple[str, Sequence[str]]],
) -> Iterator[dict[str, Worker]]:
  """Starts the workers one after the other; ends them all.

  Args:
    commands: script and arguments of each variant. One that cannot start (a
      library is missing) is left out, with a line that says so.
  """
  found: dict[str, Worker] = {}
  try:
    for name, command in commands.items():
      try:
        found[name] = Worker(*command)
      except RuntimeError as e:
        print(f'{name} is left out: {str(e).strip().splitlines()[-1]}')
        continue
      seconds = found[name].facts['warm_up_seconds']
      print(f'{name}: warm after {seconds:.1f} s', file=sys.stderr)
    yield found
  finally:
    for worker in found.values():
      worker.close()
