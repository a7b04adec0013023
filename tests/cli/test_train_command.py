"""The flags of `craft train` that reach beyond the settings."""

import os
import subprocess
import sys

import pytest

from craft_jax.main import main


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--coordinator=a:1'], 'must be given together'),
    (['--num-processes=2'], 'must be given together'),
    (
      ['--coordinator=a', '--num-processes=2', '--process-id=0'],
      'must be HOST:PORT',
    ),
    (
      ['--coordinator=a:1', '--num-processes=2', '--process-id=2'],
      'must be from 0 to',
    ),
    (
      ['--distributed', '--coordinator=a:1', '--num-processes=2',
       '--process-id=0'],
      'not both',
    ),
  ],
)  # fmt: skip
def test_processes_by_hand(capsys, flags, words):
  assert main(['train', '--config=toy', '--workdir=x', *flags]) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


@pytest.mark.slow
def test_all_flags_are_known():
  """XLA aborts on a flag it does not know, on any device."""
  code = (
    'from craft_jax.runtime import xla_flags\n'
    'xla_flags.use()\n'
    'xla_flags.see_operations()\n'
    'xla_flags.repeat_bits()\n'
    'import jax\n'
    'print(jax.numpy.ones(3).sum())\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'XLA_FLAGS': '--xla_cpu_enable_fast_math=false'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == '3.0'


@pytest.mark.slow
def test_distributed_without_a_cluster():
  done = subprocess.run(
    [sys.executable, '-m', 'craft_jax.main', '--config=toy', '--workdir=x',
     '--distributed'],
    capture_output=True,
    text=True,
    env={k: v for k, v in os.environ.items() if 'KUBERNETES' not in k},
    timeout=100,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert '--distributed finds no cluster' in done.stderr.splitlines()[-1]
