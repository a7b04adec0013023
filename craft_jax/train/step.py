"""The training step, a pure function."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from craft_jax.config.settings import Config
from craft_jax.inference.metrics import token_sums
from craft_jax.model.losses import token_losses
from craft_jax.model.protocol import Model
from craft_jax.train.state import Step, Usual
from craft_jax.types import Batch, MetricSums, Params

# Good steps before spikes are detected, and the decay of the statistics.
_SPIKE_AFTER, _USUAL_DECAY = 30, 0.98


def make_train_step(
  cfg: Config, model: Model, optimizer: optax.GradientTransformation
) -> Step:
  """Makes the pure training step, `(state, batch, key) -> state, metric sums`.

  A step is bad if its loss or gradient norm is not finite, or a spike
  (`train.spike_deviations`). A bad step changes neither parameters nor
  optimizer state, averages or statistics, and its sum `good` is 0. With
  `train.bad_step=skip` it is counted as done; otherwise the state does not
  change at all.

  Norms of update and parameters are computed only at steps that are logged, and
  are 0 otherwise, since each takes a pass over the state.
  """
  skip = cfg.train.bad_step == 'skip'

  apply = _make_apply(cfg, optimizer)
  on_gpu = model.policy.platform.name == 'gpu'

  def train_step(state, batch, key):
    grads, sums = _gradients(cfg, model, state.params, batch, key)
    with jax.named_scope('optimizer'):
      grad_norm = optax.tree.norm(grads) / sums['count']
    now_2 = jnp.stack([sums['loss'] / sums['count'], grad_norm])
    good = jnp.isfinite(now_2.sum())
    if cfg.train.spike_deviations:
      good &= ~_spike(state.usual, now_2, cfg.train.spike_deviations)
    logged = (state.step + 1) % cfg.log.every == 0
    inputs = (grads, now_2, sums['count'])
    with jax.named_scope('optimizer'):
      state, norms_2 = _apply_if(on_gpu, good, logged, apply, state, *inputs)
    if skip:
      left = 1 - good.astype(jnp.int32)
      state = state.replace(
        step=state.step + left, skipped=state.skipped + left
      )
    sums |= {
      'grad_norm': grad_norm,
      'update_norm': norms_2[0],
      'param_norm': norms_2[1],
      'good': good.astype(jnp.float32),
      'batch': _checksum(batch),
    }
    return state, sums

  return train_step


def _make_apply(cfg: Config, optimizer: optax.GradientTransformation):
  """Makes the optimizer step, `(measured, state, ...) -> state, norms`."""
  optimizer = optax.with_extra_args_support(optimizer)

  def apply(measured, state, grads, now_2, count):
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, grad_norm=now_2[1]
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      ema = _averaged(ema, params, cfg.train.ema, state.step - state.skipped)
    after = state.replace(
      step=state.step + 1,
      usual=_updated(state.usual, now_2),
      params=params,
      opt_state=opt_state,
      ema=ema,
    )
    if not measured:
      return after, jnp.zeros(2)
    norms = [optax.tree.norm(tree) for tree in (updates, params)]
    return after, jnp.stack(norms)

  return apply


def _apply_if(on_gpu, good, logged, apply, state, *inputs):
  """`apply(logged, state, ...)` if `good`, otherwise the state and zeros.

  Steps that are not logged use a conditional, which XLA updates in place, and
  logged ones a while loop of at most one iteration: a second conditional would
  make XLA copy most of the state at every step. On a GPU both would synchronize
  with the host. There norms are always computed and each array is selected,
  which on other platforms would cost another pass over the state.
  """

  def leave(state, *_):
    return state, jnp.zeros(2)

  measured = functools.partial(apply, True)
  if on_gpu:
    return jax.tree.map(
      lambda new, old: jnp.where(good, new, old),
      measured(state, *inputs),
      leave(state),
    )
  plain = functools.partial(apply, False)
  state, _ = jax.lax.cond(good & ~logged, plain, leave, state, *inputs)

  def trip(carry):
    _, state, _ = carry
    return jnp.zeros((), bool), *measured(state, *inputs)

  carry = (good & logged, state, jnp.zeros(2))
  return jax.lax.while_loop(lambda carry: carry[0], trip, carry)[1:]


def _spike(
  usual: Usual, now_2: Float[Array, '2'], deviations: float
) -> Bool[Array, '']:
  """Whether a value exceeds its mean by `deviations` standard deviations."""
  bound_2 = usual.mean_2 + deviations * jnp.sqrt(usual.variance_2)
  return (usual.count >= _SPIKE_AFTER) & jnp.any(now_2 > bound_2)


def _updated(usual: Usual, now_2: Float[Array, '2']) -> Usual:
  """Updates the statistics: plain means at first, then exponential ones."""
  count = usual.count.astype(jnp.float32)
  decay = jnp.minimum(count / (count + 1), _USUAL_DECAY)
  mean_2 = decay * usual.mean_2 + (1 - decay) * now_2
  squares_2 = (now_2 - usual.mean_2) * (now_2 - mean_2)
  variance_2 = decay * usual.variance_2 + (1 - decay) * squares_2
  return Usual(usual.count + 1, mean_2, variance_2)


@jax.named_scope('checksum')
def _checksum(batch: Batch) -> Float[Array, '']:
  """24-bit checksum of inputs, targets and positions, exact in float32.

  It does not depend on the number of devices, for up to 65,536 sequences: the
  bytes of each sequence's integer hash are summed in float32, small enough to
  be exact, and are all-reduced together with the other sums of a step.
  """
  shape = batch.x_BT.shape
  place_BT = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
  factor_BT = 2 * place_BT * jnp.uint32(0x9E3779B1) + 1
  x_BT, y_BT = (a.astype(jnp.uint32) for a in (batch.x_BT, batch.y_BT))
  tokens_BT = x_BT * 65537 + y_BT + 1
  total_B = jnp.sum(tokens_BT * factor_BT, axis=1, dtype=jnp.uint32)
  whole = jnp.zeros((), jnp.uint32)
  for place in (0, 8, 16):
    bytes_B = ((total_B >> (place + 8)) & 255).astype(jnp.float32)
    whole += bytes_B.sum().astype(jnp.uint32) << place
  return (whole & 0xFFFFFF).astype(jnp.float32)


@jax.named_scope('average')
def _averaged(
  ema: Params, params: Params, decay: float, step: Int[Array, '']
) -> Params:
  """Updates the EMA, with a decay that warms up to `decay`."""
  share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + share * (p - e), ema, params)


def _gradients(
  cfg: Config, model: Model, params: Params, batch: Batch, key: Key[Array, '']
) -> tuple[Params, MetricSums]:
  """Gradients of the summed loss over all micro-batches, and metric sums."""
  dropout_key = key if cfg.model.dropout else None

  def loss_sum(params, batch, key):
    with jax.named_scope('model'):
      logits_BTV = model.apply(params, batch.x_BT, batch.segment_BT, key)
    with jax.named_scope('loss'):
      loss_BT, nll_BT, correct_BT = token_losses(
        logits_BTV, batch.y_BT, cfg.train.label_smoothing, cfg.train.z_loss
      )
      sums = token_sums(loss_BT, nll_BT, correct_BT, batch.weight_BT)
    return sums['loss'], sums

  grad = jax.grad(loss_sum, has_aux=True)
  if cfg.train.accumulate == 1:
    return grad(params, batch, dropout_key)
  return _accumulated(grad, params, batch, dropout_key, cfg.train.accumulate)


def _accumulated(grad, params, batch, key, pieces):
  """Sums gradients and metrics over micro-batches (gradient accumulation)."""

  # Micro-batch i takes rows i, i + pieces, ..., so that rows stay on their
  # devices.
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
