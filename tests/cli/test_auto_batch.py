"""`craft train --auto-batch`: micro-batches that the compiler says fit."""

import json

import pytest

from craft_jax import main
from craft_jax.config.load import load_config
from craft_jax.runs import checkpoint
from craft_jax.runtime.host_memory import Room
from craft_jax.train.plan import compiled

_SETTINGS = [
  'model.context=64', 'model.width=16', 'model.depth=1', 'model.num_heads=2',
  'train.batch_size=64', 'train.steps=4', 'optim.warmup_steps=1',
  'eval.batch_size=8', 'log.sample_chars=0', 'mesh.cpu_devices=2',
]  # fmt: skip


@pytest.fixture(scope='module')
def room_for_half():
  """More than half a batch needs on a device, and less than the whole."""
  found = [
    compiled.compiled(load_config('toy', [*_SETTINGS, more]))[0]
    for more in ('train.accumulate=1', 'train.accumulate=2')
  ]
  whole, half = (c.together + c.unseen for c in found)
  assert whole > half
  return (whole + half) / 2


def train(workdir, *more):
  settings = [f'--config.{setting}' for setting in _SETTINGS]
  argv = ['train', '--config=toy', *settings, f'--workdir={workdir}', *more]
  return main.main(argv)


def accumulate(workdir):
  text = (workdir / 'config.json').read_text()
  return json.loads(text)['train']['accumulate']


def arrays(workdir):
  return checkpoint.tree_sha256(checkpoint.restore_raw(workdir, 4))


@pytest.mark.slow
def test_a_run_goes_on_in_the_micro_batches_that_it_had(
  tmp_path, capsys, monkeypatch, room_for_half
):
  """And is bit for bit the run that had them from the start."""
  cut, straight = tmp_path / 'cut', tmp_path / 'straight'
  with monkeypatch.context() as patch:
    patch.setattr(
      compiled.room_lib, 'room', lambda: Room(room_for_half, 'a limit')
    )
    assert train(cut, '--auto-batch', '--stop-at-step=2') == 0
  err = capsys.readouterr().err
  assert 'by XLA' in err and 'accumulate=2, micro-batches of 32\n' in err
  assert accumulate(cut) == 2
  assert train(cut, '--auto-batch', '--quiet') == 0  # with room for all of it
  assert capsys.readouterr().err == (
    'craft: --config.train.accumulate=2, micro-batches of 32\n'
  )
  assert accumulate(cut) == 2
  assert train(straight, '--config.train.accumulate=2') == 0
  assert arrays(cut) == arrays(straight)


def test_what_fits_in_no_micro_batch_is_refused(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(compiled.room_lib, 'room', lambda: Room(1e4, 'a limit'))
  assert train(tmp_path / 'run', '--auto-batch') == 2
  err = capsys.readouterr().err
  assert err.count('\n') == 1
  assert 'no train.accumulate makes this run fit: a limit leaves 10 kB' in err
  assert not (tmp_path / 'run').exists()
