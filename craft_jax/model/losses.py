"""Cross-entropy loss per target token, in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_losses(
  logits_BTV: Float[Array, 'B T V'],
  y_BT: Int[Array, 'B T'],
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T'], Bool[Array, 'B T']]:
  """Training loss, negative log-likelihood and correctness of each target.

  The loss is `(1 - s) * nll + s * mean_v(-log p_v) + z_loss * Z^2`, where s is
  `label_smoothing` (Szegedy et al., arXiv:1512.00567) and Z the log-normalizer
  (z-loss of PaLM, arXiv:2204.02311).

  Args:
    logits_BTV: logits; computed with in float32.
    y_BT: target tokens.
    label_smoothing: share of the target spread evenly over all V tokens.
    z_loss: weight of the squared log-normalizer.

  Returns:
    `loss_BT` to train on, `nll_BT` without smoothing and z-loss, and
    `correct_BT`, whether the target is the argmax of the logits.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  token_11V = jnp.arange(logits_BTV.shape[-1], dtype=y_BT.dtype)[None, None]
  hit_BTV = y_BT[..., None] == token_11V
  # A masked sum: its gradient is a select, where a gather's is a scatter.
  target_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)
  nll_BT = log_z_BT - target_BT
  loss_BT = nll_BT
  if label_smoothing:
    even_BT = log_z_BT - jnp.mean(logits_BTV, axis=-1)
    loss_BT = (1 - label_smoothing) * nll_BT + label_smoothing * even_BT
  if z_loss:
    loss_BT = loss_BT + z_loss * jnp.square(log_z_BT)
  # Equals argmax == y, as one vectorized reduction. False if a logit is NaN.
  below_BTV = logits_BTV < target_BT[..., None]
  tied_after_BTV = (logits_BTV == target_BT[..., None]) & (
    token_11V >= y_BT[..., None]
  )
  correct_BT = jnp.all(below_BTV | tied_after_BTV, axis=-1)
  return loss_BT, nll_BT, correct_BT
