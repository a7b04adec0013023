"""The peak that a compiled program says, against the process's; and kills."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from craft_jax.cli.auto_batch import cause_of


@pytest.mark.slow
def test_the_peak_is_within_a_tenth_of_what_the_program_says():
  settings = [
    'model.width=192', 'model.depth=3', 'model.num_heads=3',
    'model.context=256', 'model.mlp=gelu', 'model.precision=float32',
    'train.batch_size=56', 'eval.batch_size=2', 'mesh.cpu_devices=2',
  ]  # fmt: skip
  done = subprocess.run(
    [sys.executable, '-m', 'craft_jax.main', 'plan', '--config=toy',
     '--compile', '--steps=2', '--json', *(f'--config.{s}' for s in settings)],
    env=os.environ, stdout=subprocess.PIPE, text=True, check=True,
  )  # fmt: skip
  found = json.loads(done.stdout.splitlines()[-1])
  compiled = found['compiled'][0]
  assert 2 * compiled['temporaries'] > 1e9
  assert 0.9 < found['measured']['peak'] / compiled['expected_peak'] < 1.1


@pytest.mark.parametrize(
  ('before', 'after', 'who'),
  [
    (3, 4, 'by the kernel'),
    (3, 3, None),  # somebody else's SIGKILL
    (None, None, 'somebody'),
    (None, 4, 'by the kernel'),
  ],
)
def test_a_kill_is_for_memory_if_the_kernel_counted_one(before, after, who):
  found = cause_of(signal.SIGKILL, before, after)
  assert (found is None) == (who is None)
  if found:
    assert who in found['doing']


def test_a_crash_is_for_memory_only_under_a_limit():
  if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
    pytest.skip('these tests run under ulimit -v')
  assert cause_of(signal.SIGABRT, None, None) is None
  script = (
    'import resource, signal; from craft_jax.cli.auto_batch import cause_of; '
    'resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2); '
    'assert cause_of(signal.SIGABRT, 1, 1); '
    'assert cause_of(signal.SIGTERM, 1, 2) is None'
  )
  subprocess.run([sys.executable, '-c', script], check=True)
