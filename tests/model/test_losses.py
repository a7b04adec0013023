import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.model.losses import token_losses


def _reference(logits, y, smoothing, z_loss):
  logits = logits.astype(np.float64)
  top = logits.max(-1, keepdims=True)
  log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  log_p = logits - log_z[..., None]
  nll = -np.take_along_axis(log_p, y[..., None], -1)[..., 0]
  loss = (1 - smoothing) * nll - smoothing * log_p.mean(-1) + z_loss * log_z**2
  return loss, nll, logits.argmax(-1) == y


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('z_loss', [0.0, 1e-2])
def test_equals_numpy(smoothing, z_loss):
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 4, (3, 5, 70)).astype(np.float32)
  y = rng.integers(0, 70, (3, 5)).astype(np.int32)
  y[0] = logits[0].argmax(-1)
  got = token_losses(jnp.asarray(logits), jnp.asarray(y), smoothing, z_loss)
  want = _reference(logits, y, smoothing, z_loss)
  np.testing.assert_allclose(got[0], want[0], rtol=2e-5)
  np.testing.assert_allclose(got[1], want[1], rtol=2e-5, atol=1e-5)
  np.testing.assert_array_equal(got[2], want[2])
  assert got[2].any() and not got[2].all()


def test_gradient_is_softmax_minus_target():
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 3, (2, 3, 7)).astype(np.float32)
  y = rng.integers(0, 7, (2, 3)).astype(np.int32)

  def total(x):
    return token_losses(x, jnp.asarray(y), 0.2, 0.01)[0].sum()

  p = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
  log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
  want = p - 0.8 * np.eye(7)[y] - 0.2 / 7 + 0.02 * log_z * p
  np.testing.assert_allclose(
    jax.grad(total)(jnp.asarray(logits)), want, atol=2e-6
  )


def test_extreme_logits_stay_finite():
  logits = jnp.array([[[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]]])
  y = jnp.array([[1, 2]])
  loss, grad = jax.value_and_grad(
    lambda x: token_losses(x, y, 0.1, 1e-4)[0].sum()
  )(logits)
  assert np.isfinite(loss) and np.isfinite(grad).all()
  np.testing.assert_allclose(token_losses(logits, y)[1][0, 0], 2e4)


def test_ties_go_to_the_first_token_and_nan_is_wrong():
  y = jnp.array([[0, 1]])
  correct = token_losses(jnp.zeros((1, 2, 4)), y)[2]
  np.testing.assert_array_equal(correct, [[True, False]])
  broken = jnp.zeros((1, 2, 4)).at[..., 3].set(jnp.nan)
  assert not token_losses(broken, y)[2].any()
