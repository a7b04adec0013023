"""Eight devices, in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[3]


def _cases(*cases):
  # What LLVM makes of the program is not the question, and takes the longest.
  env = os.environ | {
    'PYTHONPATH': str(_ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['QUICK_XLA_FLAGS'],
  }
  done = subprocess.run(
    [sys.executable, str(_ROOT / 'tests/model/sharding/program.py')],
    input=json.dumps(cases),
    capture_output=True,
    text=True,
    env=env,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def eight_devices():
  """`eight_devices(*cases) -> results`, as program.py says."""
  return _cases
