"""The peak that a compiled program says, against the process's."""

import json
import os
import subprocess
import sys

import pytest


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
