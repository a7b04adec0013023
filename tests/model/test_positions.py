"""Positions by their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np

from craft_jax.model import positions
from craft_jax.model.attention import allowed


def test_rope_keeps_length_and_tells_distance():
  q_BTNH, k_BTNH = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def product(query, key):
    q = positions.rope(q_BTNH, jnp.array([[query]]), 1.0, 100.0)
    k = positions.rope(k_BTNH, jnp.array([[key]]), 1.0, 100.0)
    np.testing.assert_allclose(jnp.sum(q * q), jnp.sum(q_BTNH**2), rtol=1e-5)
    return float(jnp.sum(q * k))

  assert np.isclose(product(5, 3), product(905, 903), atol=1e-3)
  assert not np.isclose(product(5, 3), product(5, 2), atol=1e-2)


def test_partial_rope_leaves_the_rest():
  x_BTNH = jax.random.normal(jax.random.key(0), (2, 4, 3, 8))
  turned = positions.rope(x_BTNH, 1 + jnp.arange(4)[None], 0.5, 100.0)
  np.testing.assert_array_equal(turned[..., 4:], x_BTNH[..., 4:])
  assert (turned[..., :4] != x_BTNH[..., :4]).all()
  still = positions.rope(x_BTNH, jnp.zeros((1, 4), int), 0.5, 100.0)
  np.testing.assert_array_equal(still, x_BTNH)


def test_alibi_slopes():
  halves = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
  np.testing.assert_allclose(positions.alibi_slopes(8), halves)
  np.testing.assert_allclose(positions.alibi_slopes(1), [1 / 256])


def test_sinusoids():
  got_BTD = positions.sinusoids(jnp.array([[0, 3]]), 4)
  want = [[0, 0, 1, 1], np.r_[np.sin([3, 0.03]), np.cos([3, 0.03])]]
  np.testing.assert_allclose(got_BTD[0], want, atol=1e-6)
  many_BTD = positions.sinusoids(jnp.arange(500)[None], 64)
  np.testing.assert_allclose(jnp.mean(many_BTD**2), 0.5, rtol=1e-4)


def test_allowed():
  query_BT, key_BS = jnp.array([[2, 3]]), jnp.arange(5)[None]
  got = np.asarray(allowed(query_BT, key_BS, 2)).astype(int)
  np.testing.assert_array_equal(got, [[[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]])
  got = np.asarray(allowed(query_BT, key_BS, 0)).astype(int)
  np.testing.assert_array_equal(got, [[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]])
