"""A recording is of the program that the training loop runs."""

import re

import pytest

from craft_jax.errors import RunFailed
from craft_jax.model.build import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.train import run
from craft_jax.train.profile.record import record
from craft_jax.train.profile.timeline import (
  BACKWARD,
  DATA,
  FORWARD,
  OPTIMIZER,
  RECOMPUTED,
  STEP,
)
from craft_jax.train.setup import Setup


def _bare(program):
  """The text without the lines of source that each operation is from."""
  start = program.index('\n%')
  head = program[: program.index('\n')]
  return head + re.sub(r', metadata=\{[^}]*\}', '', program[start:])


@pytest.mark.slow
def test_records_the_program_of_the_loop(toy, tmp_path, monkeypatch):
  compiled, compile_step = [], Setup.compile

  def caught(self, *args):
    compiled.append(compile_step(self, *args))
    return compiled[-1]

  monkeypatch.setattr(Setup, 'compile', caught)
  cfg = toy('train.bad_step=skip')
  run.train(cfg, tmp_path / 'run', quiet=True)
  found = record(cfg, tmp_path / 'trace', 3)
  text = (tmp_path / 'trace' / 'program.txt').read_text()
  assert _bare(text) == _bare(compiled[0].as_text())

  assert (found.profile.steps, found.profile.devices) == (3, 2)
  assert (found.calls, found.recompiled, found.profile.lost) == (1, 0, 0)
  assert found.tokens == 8 * 16
  model = build(cfg.model, 260, PLATFORMS['cpu'])  # bytes and specials
  assert found.flops == model.flops_per_token(16) * found.tokens
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
def test_a_fresh_profile_has_the_parts_that_the_program_names(toy, tmp_path):
  cfg = toy('optim.name=muon', 'train.ema=0.9', 'model.remat=block')
  found = record(cfg, tmp_path / 'trace', 2).profile
  assert found.parts.keys() == {
    FORWARD, BACKWARD, RECOMPUTED, OPTIMIZER, DATA, STEP,
  }  # fmt: skip
  sources = {part: set() for part in found.parts}
  for row in found.rows:
    sources[row.part].update(row.source.split('/'))
  assert {'attention', 'mlp', 'mlp_norm', 'loss'} <= sources[FORWARD]
  assert {'attention', 'mlp', 'mlp_norm'} <= sources[BACKWARD]
  assert {'muon', 'adamw', 'average', 'clip'} <= sources[OPTIMIZER]
  assert 'windows' in sources[DATA]
  # Every product is of the model or the optimizer, and by name.
  products = {
    (row.part, row.source.removeprefix('for ').split('/')[0])
    for row in found.rows
    if row.flops
  }
  parts = {part for part, _ in products}
  assert parts == {FORWARD, BACKWARD, RECOMPUTED, OPTIMIZER}
  assert {name for part, name in products if part == OPTIMIZER} == {'muon'}


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
