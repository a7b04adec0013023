"""Bad steps of whole runs: nothing bad is applied, nothing good is lost.

One batch is poisoned, by its place in the data: a model that is fed it has a
loss, or only gradients, that are not finite.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from craft_jax.errors import RunFailed
from craft_jax.model.precision import Policy
from craft_jax.model.transformer import Decoder
from craft_jax.runs import checkpoint
from craft_jax.train import loader as feed_lib
from craft_jax.train import run

POISON = 257  # a token that no text has


class _Poisonable(Decoder):
  """Not finite where the first token of a batch is the poison."""

  value = np.nan
  loss_too = False

  def apply(self, params, x_BT, segment_BT=None, key=None):
    bad = x_BT[0, 0] == POISON

    @jax.custom_vjp
    def poison(x):
      return jnp.where(bad & self.loss_too, x * self.value, x)

    poison.defvjp(
      lambda x: (poison(x), None),
      lambda _, g: (jnp.where(bad, g * self.value, g),),
    )
    clean_BT = jnp.where(x_BT == POISON, 32, x_BT)
    return poison(super().apply(params, clean_BT, segment_BT, key))


@pytest.fixture
def poisoned(monkeypatch):
  """`poisoned(first, last, value, loss_too)`: data indices of bad batches."""

  def apply(first, last=None, value=np.nan, loss_too=False):
    last = first if last is None else last
    whole = feed_lib._DeviceFeed.fetch

    def fetch(self, source, i, data_index, key):
      batch = whole(self, source, i, data_index, key)
      bad = (data_index >= first) & (data_index <= last)
      x_BT = batch.x_BT.at[0, 0].set(jnp.where(bad, POISON, batch.x_BT[0, 0]))
      return batch._replace(x_BT=x_BT)

    def build(cfg, size, platform):
      model = _Poisonable(cfg, size, Policy('float32', platform))
      model.value, model.loss_too = value, loss_too
      return model

    monkeypatch.setattr(feed_lib._DeviceFeed, 'fetch', fetch)
    monkeypatch.setattr(run, 'build', build)

  return apply


def rows(workdir, key):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {row['step']: row[key] for row in found if key in row}


def digests(workdir):
  report = checkpoint.report(workdir)
  return [report[k] for k in ('params_sha256', 'opt_state_sha256')]


@pytest.mark.slow
@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('loss_too', [True, False])
def test_stop(toy, tmp_path, poisoned, value, loss_too):
  """In the middle of a dispatch nothing after the bad step is applied."""
  poisoned(6, value=value, loss_too=loss_too)
  cfg = toy('train.steps_per_call=5')
  with pytest.raises(RunFailed, match=r'step 7: the .* is not finite') as e:
    run.train(cfg, tmp_path / 'a', quiet=True)
  assert ('the loss' in str(e.value)) == loss_too
  assert e.value.code == 1
  run.train(
    toy('train.steps_per_call=5', 'train.stop_at_step=6'),
    tmp_path / 'b',
    quiet=True,
  )
  assert checkpoint.steps(tmp_path / 'a') == [6]
  assert digests(tmp_path / 'a') == digests(tmp_path / 'b')
  assert rows(tmp_path / 'a', 'loss') == rows(tmp_path / 'b', 'loss')


@pytest.mark.slow
def test_skip(toy, tmp_path, poisoned):
  poisoned(5, 6)
  cfg = toy('train.bad_step=skip', 'train.ema=0.9')
  summary = run.train(cfg, tmp_path / 'run', quiet=True)
  assert (summary['step'], summary['skipped']) == (12, 2)
  assert np.isfinite(summary['val_loss'])
  # Exactly the bad ones.
  assert sorted(rows(tmp_path / 'run', 'skipped')) == [6, 7]
  trained = sorted(rows(tmp_path / 'run', 'loss'))
  assert trained == [1, 2, 3, 4, 5, *range(8, 13)]


@pytest.mark.slow
def test_too_many_skips_end_the_run(toy, tmp_path, poisoned):
  poisoned(4, 100)
  cfg = toy('train.bad_step=skip', 'train.max_skips=3')
  with pytest.raises(RunFailed, match='3 steps in a row up to 7 were bad'):
    run.train(cfg, tmp_path / 'run', quiet=True)


@pytest.mark.slow
def test_rollback(toy, tmp_path, poisoned):
  run.train(toy('train.steps=20'), tmp_path / 'clean', quiet=True)
  clean = rows(tmp_path / 'clean', 'batch')
  poisoned(6)
  flags = ('train.steps=20', 'train.bad_step=rollback', 'checkpoint.every=4')
  summary = run.train(toy(*flags), tmp_path / 'a', quiet=True)
  assert (summary['step'], summary['rollbacks']) == (20, 1)
  assert checkpoint.report(tmp_path / 'a')['data_offset'] == 3
  # Back to step 4, past the batches of steps 5, 6 and 7.
  assert rows(tmp_path / 'a', 'batch') == {
    step: clean[step if step <= 4 else step + 3] for step in range(1, 18)
  } | {step: rows(tmp_path / 'a', 'batch')[step] for step in (18, 19, 20)}
  assert list(rows(tmp_path / 'a', 'loss')) == list(range(1, 21))
  assert list(rows(tmp_path / 'a', 'rollback')) == [5]
  assert checkpoint.steps(tmp_path / 'a') == [16, 20]
  # The run stays reproducible: interrupted before it, after it.
  for stop in (5, 10, 0):
    cfg = toy(*flags, f'train.stop_at_step={stop}')
    run.train(cfg, tmp_path / 'b', quiet=True)
  assert digests(tmp_path / 'a') == digests(tmp_path / 'b')


@pytest.mark.slow
def test_rollbacks_come_to_an_end(toy, tmp_path, poisoned):
  poisoned(6, 1000)
  flags = (
    'train.bad_step=rollback', 'train.max_rollbacks=2', 'checkpoint.every=4',
  )  # fmt: skip
  with pytest.raises(RunFailed, match='after 2 rollbacks'):
    run.train(toy(*flags), tmp_path / 'run', quiet=True)


@pytest.mark.slow
def test_rollback_to_the_start(toy, tmp_path, poisoned):
  """Where nothing is saved yet the run starts anew, with other data."""
  poisoned(6)
  cfg = toy('train.bad_step=rollback', 'checkpoint.every=10')
  summary = run.train(cfg, tmp_path / 'run', quiet=True)
  assert (summary['step'], summary['rollbacks']) == (12, 1)
  assert checkpoint.report(tmp_path / 'run')['data_offset'] == 7


@pytest.mark.slow
@pytest.mark.parametrize('policy', ['stop', 'skip', 'rollback'])
def test_parameters_that_are_lost_are_not_saved(
  toy, tmp_path, monkeypatch, policy
):
  """A finite gradient whose update is not: too late to leave it out."""
  whole = run.build_optimizer

  def build_optimizer(*args):
    def factor(count):
      return jnp.where(count == 6, np.inf, 1.0)

    return optax.chain(whole(*args), optax.scale_by_schedule(factor))

  monkeypatch.setattr(run, 'build_optimizer', build_optimizer)
  cfg = toy(f'train.bad_step={policy}', 'checkpoint.every=4')
  error = {
    'rollback': 'step [0-9]+: the .* not finite, after 3 rollbacks',
  }.get(policy, 'step [0-9]+: the .* not finite, nor are the parameters')
  with pytest.raises(RunFailed, match=error) as e:
    run.train(cfg, tmp_path / 'run', quiet=True)
  assert e.value.code == 1
  assert checkpoint.steps(tmp_path / 'run') == [4]
  assert max(rows(tmp_path / 'run', 'loss')) <= 7
