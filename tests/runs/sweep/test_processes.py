"""Processes of runs: devices dealt out, what is passed on."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from craft_jax.errors import UserError
from craft_jax.runs.sweep import processes


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """`machine(gpus)`: nvidia-smi lists that many."""
  for name in ('JAX_PLATFORMS', 'CUDA_VISIBLE_DEVICES'):
    monkeypatch.delenv(name, raising=False)

  def make(gpus):
    lines = '\n'.join(f'GPU {i}: NVIDIA H100 (UUID: GPU-{i})' for i in gpus)
    program = tmp_path / 'nvidia-smi'
    program.write_text(f'#!/bin/sh\necho "{lines}"\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)

  monkeypatch.setenv('PATH', '/usr/bin:/bin')
  return make


def visible(jobs):
  found, warning = processes.shares(jobs)
  return [one.get('CUDA_VISIBLE_DEVICES') for one in found], warning


def test_gpus_are_dealt_out(machine):
  machine(range(5))
  assert visible(2) == (['0,1', '2,3'], '')
  assert visible(5) == (list('01234'), '')
  assert visible(1) == ([None], '')
  found, warning = visible(6)
  assert found == [*'01234', '0'] and '6 runs at a time share 5 GPU' in warning


def test_named_gpus_are_kept_to(machine, monkeypatch):
  machine(range(8))
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '6,GPU-ab')
  assert visible(2) == (['6', 'GPU-ab'], '')
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  assert visible(2)[0] == [None, None]


def test_cpus_are_shared(machine, monkeypatch):
  found, warning = visible(3)
  assert found == [None] * 3 and 'share the devices of this machine' in warning
  machine(range(2))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert visible(2)[0] == [None, None]
  with pytest.raises(UserError, match='at least 1'):
    processes.shares(0)


def ended(process):
  deadline = time.monotonic() + 60
  while (code := process.code()) is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  return code


def test_last_words_are_of_this_start(tmp_path):
  log = tmp_path / 'logs' / 'a.log'
  for flag in ('--config=bse', '--config=base:smal'):
    process = processes.Process('a', [flag], log)
    assert ended(process) == 2
  assert process.last_words().startswith(
    'configs/base.py: unknown variant'
  ) or ("unknown variant 'smal'" in process.last_words())
  assert log.read_text().count('craft: ') == 2
  process = processes.Process('a', ['--help'], log)
  assert ended(process) == 0 and process.last_words()


def test_a_killed_sweep_leaves_no_run_behind(tmp_path):
  """The run is asked to end as soon as its parent is gone."""
  if sys.platform != 'linux':
    pytest.skip('only Linux tells a child')
  log = tmp_path / 'a.log'
  code = (
    'import pathlib, sys, time\n'
    'from craft_jax.runs.sweep import processes\n'
    # What `craft train` begins with; any program that lives on will do.
    'run = "from craft_jax.runtime.signals import follow_parent; "\n'
    'run += "follow_parent(); import time; time.sleep(300)"\n'
    'processes.command = lambda flags: [sys.executable, "-c", run]\n'
    f'p = processes.Process("a", [], pathlib.Path({str(log)!r}))\n'
    'print(p._process.pid, flush=True)\n'
    'time.sleep(300)\n'
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  child = int(parent.stdout.readline())
  assert pathlib.Path(f'/proc/{child}').exists()
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  parent.stdout.close()
  deadline = time.monotonic() + 20
  while pathlib.Path(f'/proc/{child}').exists():
    status = pathlib.Path(f'/proc/{child}/status')
    if 'State:\tZ' in status.read_text():  # ended; nobody has asked yet
      break
    assert time.monotonic() < deadline
    time.sleep(0.02)
