"""Toy models whose every parameter is non-zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

HERE = platform_of(jax.devices()[0])

VOCABULARY_SIZE = 11


def _toy(vocabulary_size=VOCABULARY_SIZE, **changes):
  settings = {
    'context': 12,
    'width': 16,
    'depth': 2,
    'num_heads': 4,
    'unroll': 1,
    'precision': 'float32',
  }
  model = build(Model(**settings | changes), vocabulary_size, HERE)
  return model, _params(model)


def _params(model):
  """Random leaves: what starts at zero or one would hide errors.

  From NumPy, because JAX compiles a generator for every shape.
  """
  rng = np.random.default_rng(1)

  def leaf(path, shape):
    noise = jnp.asarray(0.4 * rng.normal(size=shape.shape), jnp.float32)
    return noise + 1 if path[-1].key == 'scale' else noise

  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _tokens(batch, length, vocabulary_size=VOCABULARY_SIZE):
  rng = np.random.default_rng(2)
  return jnp.asarray(rng.integers(vocabulary_size, size=(batch, length)))


def _loss(model, params, x_BT, **more):
  """Mean cross-entropy of the next token."""
  logits_BTV = model.apply(params, x_BT[:, :-1], **more)
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  return -jnp.mean(jnp.take_along_axis(log_p_BTV, x_BT[:, 1:, None], -1))


@pytest.fixture(scope='session')
def toy():
  """`toy(**settings) -> (model, params)`."""
  return _toy


@pytest.fixture(scope='session')
def tokens():
  """`tokens(batch, length) -> x_BT`."""
  return _tokens


@pytest.fixture(scope='session')
def loss():
  """`loss(model, params, x_BT) -> nats`."""
  return _loss
