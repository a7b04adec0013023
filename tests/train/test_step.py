"""The training step alone: its arithmetic, and what it does to bad steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.model.build import build
from craft_jax.model.precision import Policy, platform_of
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.model.transformer import Decoder
from craft_jax.runs import checkpoint
from craft_jax.train.dispatch import make_run
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.state import abstract_state, init_state
from craft_jax.train.step import _checksum, make_train_step
from craft_jax.types import Batch

HERE = platform_of(jax.devices()[0])

V = 20


def random_batch(index, rows=8, context=16, weights=False):
  rng = np.random.default_rng(index)
  window = rng.integers(0, V, (rows, context + 1))
  weight = rng.integers(0, 2, (rows, context)) if weights else 1.0
  return Batch(
    jnp.asarray(window[:, :-1], jnp.int32),
    jnp.asarray(window[:, 1:], jnp.int32),
    jnp.asarray(np.broadcast_to(weight, (rows, context)), jnp.float32),
    jnp.zeros((rows, context), jnp.int32),
  )


def make(cfg, model=None):
  model = model or build(cfg.model, V, HERE)
  optimizer = build_optimizer(cfg, model, None)
  state = init_state(model, optimizer, jax.random.key(0), cfg.train.ema > 0)
  # Nothing starts at zero, so that every gradient is there from step one.
  noise = jax.random.normal(jax.random.key(1), (4096,))
  params = jax.tree.map(
    lambda p: p + 0.1 * jnp.resize(noise, p.shape), state.params
  )
  return jax.jit(make_train_step(cfg, model, optimizer)), state.replace(
    params=params
  )


def digest(state):
  return checkpoint.tree_sha256(state)


def test_golden_step(toy):
  step, state = make(toy('optim.name=adamw'))
  losses = []
  for i in range(3):
    state, sums = step(state, random_batch(i), jax.random.key(i))
    losses.append(float(sums['loss'] / sums['count']))
  np.testing.assert_allclose(losses, GOLDEN, rtol=1e-5)


# Float32 on the CPU; a change of these numbers is a change of the program.
GOLDEN = [3.0492318, 3.1234221, 3.0729470]


@pytest.mark.parametrize(
  'dropout', [0.0, pytest.param(0.5, marks=pytest.mark.slow)]
)
def test_accumulation_weighs_tokens(toy, dropout):
  # Rows carry very different numbers of tokens that count.
  batch = random_batch(0, weights=True)
  batch = batch._replace(weight_BT=batch.weight_BT.at[:5].set(0.0))
  extra = ['optim.name=sgd', f'model.dropout={dropout}']
  one, state = make(toy(*extra))
  four, _ = make(toy(*extra, 'train.accumulate=4'))
  whole, a = one(state, batch, jax.random.key(0))
  pieces, b = four(state, batch, jax.random.key(0))
  assert a['count'] == b['count'] == batch.weight_BT.sum()
  same = [
    np.allclose(x, y, rtol=1e-4, atol=1e-6)
    for x, y in zip(
      jax.tree.leaves(whole.params), jax.tree.leaves(pieces.params), strict=True
    )
  ]
  # Dropout draws per micro-batch, so there it must differ.
  assert all(same) == (dropout == 0.0)


def test_ema(toy):
  step, state = make(toy('train.ema=0.9'))
  state = state.replace(ema=jax.tree.map(jnp.zeros_like, state.params))
  after, _ = step(state, random_batch(0), jax.random.key(0))
  # At step 0 the decay is min(0.9, 1/10).
  for e, p in zip(
    jax.tree.leaves(after.ema), jax.tree.leaves(after.params), strict=True
  ):
    np.testing.assert_allclose(e, 0.9 * p, rtol=1e-5)
  assert after.eval_params is after.ema


# What a batch that starts with token 0 to 3 is multiplied by, and whether
# its loss is too: as data, so that one program is compiled for all.
_VALUES = (np.nan, np.inf, np.nan, np.inf)
_LOSS_TOO = (False, False, True, True)


class _Poisoned(Decoder):
  """A model whose gradient, or loss and gradient, is not finite."""

  def __init__(self, cfg):
    super().__init__(cfg, V, Policy('float32', HERE))

    @jax.custom_vjp
    def poison(x, value, loss_too):
      return jnp.where(loss_too, x * value, x)

    def backward(value, g):
      # A factor of 1 would not do elsewhere: 0 * NaN is NaN.
      return jnp.where(value == 1, g, g * value), None, None

    poison.defvjp(
      lambda x, value, loss_too: (poison(x, value, loss_too), value), backward
    )
    self._poison = poison

  def apply(self, params, x_BT, segment_BT=None, key=None):
    logits = super().apply(params, x_BT, segment_BT, key)
    kind = jnp.minimum(x_BT[0, 0], 4)
    value, loss_too = (
      jnp.asarray(column)[kind] for column in ((*_VALUES, 1), (*_LOSS_TOO, 0))
    )
    return self._poison(logits, value, loss_too.astype(bool))


def starting_with(batch, token):
  return batch._replace(x_BT=batch.x_BT.at[0, 0].set(token))


_GOOD = len(_VALUES)  # the first token of a batch that is not poisoned


@pytest.fixture(scope='module')
def poisoned():
  """`poisoned(cfg)`: `make` of a poisoned model, once for each config."""
  made = {}

  def get(cfg):
    wanted = (cfg.train.bad_step, cfg.train.ema)
    if wanted not in made:
      made[wanted] = make(cfg, _Poisoned(cfg.model))
    return made[wanted]

  return get


@pytest.mark.parametrize('kind', range(len(_VALUES)))
def test_a_bad_step_changes_nothing(toy, poisoned, kind):
  step, state = poisoned(toy('train.ema=0.9'))
  good = starting_with(random_batch(0), _GOOD)
  bad = starting_with(random_batch(0), kind)
  state, sums = step(state, good, jax.random.key(0))
  assert sums['good'] == 1 and state.step == 1
  after, sums = step(state, bad, jax.random.key(0))
  assert sums['good'] == 0
  assert np.isfinite(sums['loss']) == (not _LOSS_TOO[kind])
  assert digest(after) == digest(state)


def test_a_call_is_its_steps(toy):
  cfg = toy()
  step, state = make(cfg)
  batches = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), *[random_batch(i) for i in range(6)]
  )

  def fetch(source, i, data_index, key):
    return jax.tree.map(lambda leaf: leaf[data_index], source)

  run = jax.jit(make_run(step, fetch, 8))
  key = jax.random.key(0)
  at_once, rows, finite = run(state, batches, key, 6)
  one_by_one = state
  losses = []
  for _ in range(6):
    one_by_one, row, _ = run(one_by_one, batches, key, 1)
    losses.append(row['loss'][0])
  assert digest(at_once) == digest(one_by_one)
  np.testing.assert_array_equal(rows['loss'][:6], losses)
  assert not rows['loss'][6:].any() and finite


@pytest.mark.parametrize('kind', range(len(_VALUES)))
def test_skipping_is_as_if_the_step_had_not_been(toy, poisoned, kind):
  step, state = poisoned(toy('train.ema=0.9', 'train.bad_step=skip'))
  good = [starting_with(random_batch(i), _GOOD) for i in range(3)]
  bad = starting_with(good[0], kind)
  key = jax.random.key(0)
  with_it, without = state, state
  for batch in (good[0], bad, bad, good[1], good[2]):
    with_it, sums = step(with_it, batch, key)
    assert sums['good'] == (batch is not bad)
  for batch in good:
    without, _ = step(without, batch, key)
  assert (with_it.step, with_it.skipped) == (5, 2)
  counts = {'step': without.step, 'skipped': without.skipped}
  assert digest(with_it.replace(**counts)) == digest(without)


def test_statistics_of_good_steps(toy):
  """Plain mean and variance at first; nothing of a bad step gets in."""
  step, state = make(toy('train.bad_step=skip'))
  seen = []
  for i in range(8):
    before = state.usual
    batch = random_batch(i)
    if i == 5:
      batch = batch._replace(weight_BT=batch.weight_BT * np.nan)
    state, sums = step(state, batch, jax.random.key(0))
    if i == 5:
      assert digest(state.usual) == digest(before)
    else:
      seen.append([sums['loss'] / sums['count'], sums['grad_norm']])
  assert state.usual.count == 7
  np.testing.assert_allclose(state.usual.mean_2, np.mean(seen, 0), rtol=1e-5)
  np.testing.assert_allclose(
    state.usual.variance_2, np.var(seen, 0), rtol=1e-3, atol=1e-7
  )


def test_a_spike_is_a_bad_step(toy):
  cfg = toy('train.bad_step=skip', 'train.spike_deviations=6')
  step, state = make(cfg)
  key = jax.random.key(0)
  for i in range(40):
    state, sums = step(state, random_batch(i), key)
    assert sums['good'] == 1
  wild = state.replace(params=jax.tree.map(lambda p: 30 * p, state.params))
  after, sums = step(wild, random_batch(40), key)
  assert sums['good'] == 0 and np.isfinite(sums['loss'])
  assert after.skipped == 1
  assert digest(after.params) == digest(wild.params)
  # The next usual step is not held against what the spike was.
  _, sums = step(state, random_batch(41), key)
  assert sums['good'] == 1


def test_the_checksum_sees_tokens_and_places():
  batch = random_batch(0)
  sums = {
    float(_checksum(b))
    for b in (
      batch,
      batch._replace(x_BT=batch.x_BT.at[3, 5].add(1)),
      batch._replace(y_BT=batch.y_BT.at[3, 5].add(1)),
      batch._replace(x_BT=batch.x_BT[::-1]),
      batch._replace(x_BT=batch.x_BT[:, ::-1]),
    )
  }
  assert len(sums) == 5
  assert all(s == int(s) < 2**24 for s in sums)


def test_a_call_ends_at_a_bad_step(toy):
  cfg = toy()
  step, state = make(cfg, _Poisoned(cfg.model))
  batches = [
    starting_with(random_batch(i), 0 if i == 3 else _GOOD) for i in range(6)
  ]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

  def fetch(source, i, data_index, key):
    return jax.tree.map(lambda leaf: leaf[data_index], source)

  run = jax.jit(make_run(step, fetch, 8))
  key = jax.random.key(0)
  want, _, _ = run(state, stacked, key, 3)
  got, rows, _ = run(state, stacked, key, 6)
  assert digest(got) == digest(want)
  np.testing.assert_array_equal(rows['good'], [1, 1, 1, 0, 0, 0, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize('optimizer_name', ['adamw', 'muon'])
def test_meshes_agree(toy, optimizer_name):
  def train(axis):
    axes = {'data': 1, 'fsdp': 1, 'tensor': 1} | {axis: 2}
    cfg = toy(
      f'optim.name={optimizer_name}',
      *(f'mesh.{name}={size}' for name, size in axes.items()),
    )
    mesh = mesh_lib.make_mesh(cfg)
    model = build(cfg.model, V, HERE)
    optimizer = build_optimizer(cfg, model, mesh)
    abstract = abstract_state(model, optimizer, False, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(
      lambda key: init_state(model, optimizer, key, False),
      out_shardings=shardings,
    )(jax.random.key(0))
    step = jax.jit(
      make_train_step(cfg, model, optimizer), out_shardings=(shardings, None)
    )
    sharding = mesh_lib.batch_sharding(mesh)
    losses = []
    for i in range(4):
      batch = mesh_lib.put_batch(random_batch(i), sharding)
      with jax.set_mesh(mesh):
        state, sums = step(state, batch, jax.random.key(0))
      losses.append(float(sums['loss'] / sums['count']))
    return losses, state

  want, _ = found = train('data')
  for axis in ('data', 'fsdp', 'tensor'):
    got, state = found if axis == 'data' else train(axis)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    kernel = state.params['blocks']['mlp']['in']['kernel']
    moment = [
      leaf
      for path, leaf in checkpoint.leaf_paths(state.opt_state).items()
      if path.endswith('/blocks/mlp/in/kernel') and leaf.ndim == 3
    ]
    assert moment
    parts = 1 if axis == 'data' else 2
    for leaf in (kernel, moment[0]):
      assert leaf.addressable_shards[0].data.size == leaf.size // parts


def test_learning_rate_of_zero_is_still(toy):
  cfg = toy('optim.learning_rate=0.0', 'optim.muon_learning_rate=0.0')
  step, state = make(cfg)
  after, sums = step(state, random_batch(0), jax.random.key(0))
  assert digest(after.params) == digest(state.params)
  assert sums['update_norm'] == 0 and sums['grad_norm'] > 0
  assert dataclasses.fields(after)[0].name == 'step' and after.step == 1
