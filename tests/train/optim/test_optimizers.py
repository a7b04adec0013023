import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from craft_jax.config.settings import Config
from craft_jax.model.build import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.train.optim import masks
from craft_jax.train.optim.optimizers import build_optimizer

MODEL = build(
  dataclasses.replace(Config().model, precision='float32'),
  260,
  PLATFORMS['cpu'],
)
NAMES = ('adamw', 'lion', 'adafactor', 'muon', 'sgd')


def _config(steps=100, **optim):
  base = {
    'schedule': 'constant',
    'warmup_steps': 0,
    'learning_rate': 0.01,
    'clip_norm': 0.0,
    'muon_learning_rate': 0.05,
    'weight_decay': 0.0,
  }
  cfg = Config()
  return dataclasses.replace(
    cfg,
    optim=dataclasses.replace(cfg.optim, **(base | optim)),
    train=dataclasses.replace(cfg.train, steps=steps),
  )


def _params(seed=0):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return {
    'embed': {'embedding': draw(5, 4)},
    'blocks': {
      'attention_norm': {'scale': draw(2, 4)},
      'attention': {'query': {'kernel': draw(2, 4, 4)}},
      'mlp': {
        'in': {'kernel': draw(2, 4, 8)},
        'out': {'kernel': draw(2, 8, 4)},
      },
      'mlp_norm': {'scale': draw(2, 4), 'bias': draw(2, 4)},
    },
    'head': {'kernel': draw(4, 5)},
  }


def _first_update(cfg, grads, params):
  optimizer = build_optimizer(cfg, MODEL)
  return optimizer.update(grads, optimizer.init(params), params)[0]


def _assert_trees_close(got, want, rtol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6),
    got,
    want,
  )


@pytest.mark.parametrize('name', NAMES)
def test_decreases_a_quadratic_inside_a_loop(name):
  rate = 0.002 if name == 'sgd' else 0.05
  optimizer = build_optimizer(_config(name=name, learning_rate=rate), MODEL)
  target = _params(1)

  def loss(params):
    parts = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
    return sum(jax.tree.leaves(parts))

  @jax.jit
  def run(params, steps):
    def body(_, carry):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    return jax.lax.fori_loop(0, steps, body, (params, state))[0]

  before = loss(_params(0))
  assert loss(run(_params(0), 40)) < 0.35 * before


def test_first_updates_by_hand():
  params, grads = _params(0), _params(2)
  sign = jax.tree.map(lambda g: -0.01 * jnp.sign(g), grads)
  # At the first step Adam's moments are g and g^2, and so is Adafactor's where
  # nothing is factored: both give the sign, which has a root mean square of 1.
  for name in ('adamw', 'lion', 'adafactor'):
    _assert_trees_close(_first_update(_config(name=name), grads, params), sign)
  # Nesterov momentum m: the first step is (1 + m) g.
  got = _first_update(_config(name='sgd', momentum=0.5), grads, params)
  _assert_trees_close(got, jax.tree.map(lambda g: -0.015 * g, grads))


def test_second_adamw_update_by_hand():
  cfg = _config(name='adamw', b1=0.8, b2=0.9, eps=1e-8)
  optimizer = build_optimizer(cfg, MODEL)
  params, g, h = _params(0), _params(2), _params(3)
  _, state = optimizer.update(g, optimizer.init(params), params)
  got, _ = optimizer.update(h, state, params)

  def want(g, h):
    m = (0.8 * 0.2 * g + 0.2 * h) / (1 - 0.8**2)
    v = (0.9 * 0.1 * g**2 + 0.1 * h**2) / (1 - 0.9**2)
    return -0.01 * m / (jnp.sqrt(v) + 1e-8)

  _assert_trees_close(got, jax.tree.map(want, g, h))


def test_muon_leaves_the_rest_to_adamw():
  params, grads = _params(0), _params(2)
  got = _first_update(_config(name='muon'), grads, params)
  sign = jax.tree.map(lambda g: -0.01 * jnp.sign(g), grads)
  for part in ('embed', 'head'):
    _assert_trees_close(got[part], sign[part])
  for norm in ('attention_norm', 'mlp_norm'):
    _assert_trees_close(got['blocks'][norm], sign['blocks'][norm])
  for path, scale in (('in', np.sqrt(2)), ('out', 1.0)):
    kernel = np.asarray(got['blocks']['mlp'][path]['kernel'])
    values = np.linalg.svd(kernel / (0.05 * scale), compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=0.35)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('embeddings', [False, True])
def test_decay_is_rate_times_masked_params(name, embeddings):
  params = _params(0)
  grads = jax.tree.map(jnp.zeros_like, params)
  cfg = _config(
    name=name,
    weight_decay=0.1,
    decay_embeddings=embeddings,
    schedule='linear',
    warmup_steps=1,
    steps=10,
  )
  got = _first_update(cfg, grads, params)  # half the peak at step 0
  want = jax.tree.map(jnp.zeros_like, params)
  rate = 0.05 if name == 'muon' else 0.01
  for part in ('attention', 'mlp'):
    want['blocks'][part] = jax.tree.map(
      lambda p: -0.1 * rate / 2 * p, params['blocks'][part]
    )
  if embeddings:
    for part in ('embed', 'head'):
      want[part] = jax.tree.map(lambda p: -0.1 * 0.01 / 2 * p, params[part])
  _assert_trees_close(got, want)


def test_masks_name_every_kind():
  mask = masks.decay_mask(MODEL, _params(), decay_embeddings=False)
  assert jax.tree.leaves(mask['blocks']['mlp']) == [True, True]
  assert not any(
    jax.tree.leaves(
      [
        mask['embed'],
        mask['head'],
        mask['blocks']['mlp_norm'],
      ]
    )
  )
  biased = {'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}}
  both = masks.decay_mask(MODEL, biased, decay_embeddings=True)
  assert both == {'head': {'kernel': True, 'bias': False}}
  labels = masks.hidden_matrices(MODEL, _params())
  assert labels['head']['kernel'] == labels['embed']['embedding'] == 'adamw'
  assert labels['blocks']['mlp']['in']['kernel'] == 'muon'
  with pytest.raises(ValueError, match='no known kind'):
    masks.decay_mask(MODEL, {'head': {'gain': jnp.ones(2)}}, False)
  odd = {'blocks': {'mlp': {'kernel': jnp.ones((2, 2))}}}
  with pytest.raises(ValueError, match='not a stack'):
    masks.hidden_matrices(MODEL, odd)


def test_value_is_clipped_before_norm():
  cfg = _config(
    name='sgd', momentum=0.0, learning_rate=1.0, clip_value=3.0, clip_norm=1.0
  )
  params = {'head': {'kernel': jnp.zeros((1, 2))}}
  grads = {'head': {'kernel': jnp.array([[100.0, 4.0]])}}
  got = _first_update(cfg, grads, params)['head']['kernel']
  np.testing.assert_allclose(got, -np.ones((1, 2)) / np.sqrt(2), rtol=1e-5)
  small = {'head': {'kernel': jnp.array([[0.3, -0.4]])}}
  got = _first_update(cfg, small, params)['head']['kernel']
  np.testing.assert_allclose(got, [[-0.3, 0.4]], rtol=1e-5)


@pytest.mark.parametrize('norm', [0.1, 5.0, 500.0])
def test_a_known_norm_is_taken(norm):
  """As if it had been measured; and the given one is what counts."""
  cfg = _config(name='sgd', momentum=0.0, learning_rate=1.0, clip_norm=1.0)
  optimizer = build_optimizer(cfg, MODEL)
  params = {'head': {'kernel': jnp.zeros((1, 2))}}
  grads = {'head': {'kernel': norm * jnp.array([[0.6, -0.8]])}}
  state = optimizer.init(params)
  want, _ = optimizer.update(grads, state, params)
  got, _ = optimizer.update(grads, state, params, grad_norm=jnp.array(norm))
  np.testing.assert_allclose(
    got['head']['kernel'], want['head']['kernel'], rtol=1e-6
  )
  other, _ = optimizer.update(grads, state, params, grad_norm=jnp.array(2.0))
  np.testing.assert_allclose(
    other['head']['kernel'], -grads['head']['kernel'] / 2, rtol=1e-6
  )
