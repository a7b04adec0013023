"""The training step and the loop of steps on the device. Pure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from craft_jax.losses import token_losses
from craft_jax.metrics import token_sums
from craft_jax.model.transformer import Decoder
from craft_jax.settings import Config
from craft_jax.train.state import State
from craft_jax.types import Batch, MetricSums, Params

Step = Callable[[State, Batch, Key[Array, '']], tuple[State, MetricSums]]
Fetch = Callable[[Any, Int[Array, ''], Int[Array, ''], Key[Array, '']], Batch]


def make_train_step(
  cfg: Config, model: Decoder, optimizer: optax.GradientTransformation
) -> Step:
  """The pure `(state, batch, key) -> state, metric sums` of a run.

  A step with a non-finite loss, gradient or update returns the state as it was,
  with `finite` 0: nothing is multiplied by the bad values.
  """

  def train_step(state, batch, key):
    grads, sums = _gradients(cfg, model, state.params, batch, key)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    update_norm = optax.tree.norm(updates)
    finite = jnp.isfinite(sums['loss'] + grad_norm + update_norm)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      ema = _averaged(ema, params, cfg.train.ema, state.step)
    after = State(state.step + 1, state.data_offset, params, opt_state, ema)
    state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), after, state
    )
    sums |= {
      'grad_norm': grad_norm,
      'update_norm': update_norm,
      'param_norm': optax.tree.norm(state.params),
      'finite': finite.astype(jnp.float32),
    }
    return state, sums

  return train_step


def _averaged(
  ema: Params, params: Params, decay: float, step: Int[Array, '']
) -> Params:
  """Averages with a decay that grows to `decay`, so the start is forgotten."""
  share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + share * (p - e), ema, params)


def _gradients(
  cfg: Config, model: Decoder, params: Params, batch: Batch, key: Key[Array, '']
) -> tuple[Params, MetricSums]:
  """Gradients of the loss per symbol, over all micro-batches, and its sums."""
  dropout_key = key if cfg.model.dropout else None

  def loss_sum(params, batch, key):
    logits_BTV = model.apply(params, batch.x_BT, batch.segment_BT, key)
    loss_BT, nll_BT, correct_BT = token_losses(
      logits_BTV, batch.y_BT, cfg.train.label_smoothing, cfg.train.z_loss
    )
    sums = token_sums(loss_BT, nll_BT, correct_BT, batch.weight_BT)
    return sums['loss'], sums

  grad = jax.grad(loss_sum, has_aux=True)
  if cfg.train.accumulate == 1:
    grads, sums = grad(params, batch, dropout_key)
  else:
    grads, sums = _accumulated(
      grad, params, batch, dropout_key, cfg.train.accumulate
    )
  return jax.tree.map(lambda g: g / sums['count'], grads), sums


def _accumulated(grad, params, batch, key, pieces):
  """Sums gradients and sums over micro-batches; the weights do the weighing."""

  # Micro-batch i takes rows i, i + pieces, ...: each device keeps its rows.
  def split(array):
    rows = array.shape[0] // pieces
    return jnp.moveaxis(array.reshape(rows, pieces, *array.shape[1:]), 1, 0)

  def add(total, piece):
    index, micro = piece
    micro_key = None if key is None else jax.random.fold_in(key, index)
    return jax.tree.map(jnp.add, total, grad(params, micro, micro_key)), None

  micros = jax.tree.map(split, batch)
  first = jax.tree.map(lambda a: a[0], micros)
  shapes = jax.eval_shape(grad, params, first, key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), micros))
  return total


def make_run(
  step: Step,
  fetch: Fetch,
  keep_rows: int,
) -> Callable[..., tuple[State, MetricSums]]:
  """Many steps in one dispatch.

  Args:
    step: the training step.
    fetch: `(source, i, data_index, key) -> Batch` of the i-th step of the
      call; the key is of the run's augmentation.
    keep_rows: most steps per call: rows of the metric buffers.

  Returns:
    `(state, source, key, num_steps) -> state, rows`, where each metric has
    `keep_rows` entries, of which the first `num_steps` are set. The trip
    count is traced. After a bad step the rest of the call is a no-op.
  """

  def run(state, source, key, num_steps):
    data_key, dropout_key = jax.random.split(key)

    def body(carry):
      i, state, rows, _ = carry
      data_index = state.step + state.data_offset
      batch = fetch(source, i, data_index, data_key)
      step_key = jax.random.fold_in(dropout_key, data_index)
      state, sums = step(state, batch, step_key)
      rows = {name: rows[name].at[i].set(sums[name]) for name in sums}
      return i + 1, state, rows, sums['finite'] > 0

    def going(carry):
      i, _, _, finite = carry
      return (i < num_steps) & finite

    zero = jnp.zeros((), jnp.int32)
    shapes = jax.eval_shape(
      lambda: step(state, fetch(source, zero, zero, key), key)[1]
    )
    rows = {name: jnp.zeros(keep_rows) for name in shapes}
    carry = (zero, state, rows, jnp.ones((), bool))
    _, state, rows, _ = jax.lax.while_loop(going, body, carry)
    return state, rows

  return run
