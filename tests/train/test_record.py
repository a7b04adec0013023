"""A recording is of the program that the training loop runs."""

import re

import pytest

from craft_jax.errors import RunFailed
from craft_jax.model import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.train import loop
from craft_jax.train.profile.record import record


def _bare(program):
  """The text without the lines of source that each operation is from."""
  start = program.index('\n%')
  head = program[: program.index('\n')]
  return head + re.sub(r', metadata=\{[^}]*\}', '', program[start:])


@pytest.mark.slow
def test_records_the_program_of_the_loop(toy, tmp_path, monkeypatch):
  compiled, compile_loop = [], loop._Loop._compiled

  def caught(self, inputs):
    compiled.append(compile_loop(self, inputs))
    return compiled[-1]

  monkeypatch.setattr(loop._Loop, '_compiled', caught)
  cfg = toy('train.bad_step=skip')
  loop.train(cfg, tmp_path / 'run', quiet=True)
  found = record(cfg, tmp_path / 'trace', 3)
  text = (tmp_path / 'trace' / 'program.txt').read_text()
  assert _bare(text) == _bare(compiled[0].as_text())

  assert (found.profile.steps, found.profile.devices) == (3, 2)
  assert (found.calls, found.recompiled, found.profile.lost) == (1, 0, 0)
  assert found.symbols == 8 * 16
  model = build(cfg.model, 260, PLATFORMS['cpu'])  # bytes and specials
  assert found.flops == model.flops_per_token(16) * found.symbols
  # All products of the model; Muon's come on top.
  in_model = [
    row.flops
    for row in found.profile.rows
    if row.part in ('forward', 'backward')
  ]
  assert sum(in_model) == found.flops / found.profile.devices
  memory = found.memory
  assert memory['arguments'] > memory['aliased'] > 0  # the state is donated
  assert found.ceilings.flops > 0 and 'measured' in found.ceilings.source
  assert not (tmp_path / 'trace' / 'run').exists()


@pytest.mark.slow
def test_streams_and_several_calls(toy, tmp_path):
  cfg = toy('data.placement=grain', 'train.steps_per_call=2')
  found = record(cfg, tmp_path / 'trace', 5)
  assert (found.calls, found.steps_per_call) == (3, 2)
  assert (found.recompiled, found.profile.lost) == (0, 0)
  assert found.wait_seconds >= 0
  assert next(iter(tmp_path.glob('trace/**/*.xplane.pb'))).stat().st_size


@pytest.mark.slow
def test_steps_that_are_not_done_are_no_profile(toy, tmp_path):
  with pytest.raises(RunFailed, match='a step was not finite'):
    record(toy('train.z_loss=1e38'), tmp_path / 'trace', 2)
  assert not (tmp_path / 'trace').exists()
