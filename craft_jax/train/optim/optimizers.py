"""Optimizers as optax transformations of the whole parameter tree."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from craft_jax.config.settings import Config, Optim
from craft_jax.model.protocol import Model
from craft_jax.runtime import keys
from craft_jax.train.optim import masks
from craft_jax.train.optim.muon import scale_by_muon
from craft_jax.train.optim.schedules import run_schedule
from craft_jax.types import Params


def build_optimizer(
  cfg: Config, model: Model, mesh: Mesh | None = None
) -> optax.GradientTransformationExtraArgs:
  """Builds the optimizer with clipping, decoupled weight decay and schedule.

  Gradients are clipped by value, then by global norm, with those of frozen
  parameters at 0. The update of a matrix is
  `-rate * (direction + weight_decay * param)`, where the schedule gives `rate`.

  Args:
    cfg: run settings; `optim` and `train.steps` are read.
    model: model that the parameters belong to.
    mesh: devices that share Muon's work; None repeats it on every device.

  Returns:
    `init(params)` and `update(grads, state, params, grad_norm=None)`. `update`
    needs the params, and computes the global norm unless it is given.
  """
  optim, frozen = cfg.optim, cfg.train.freeze
  chain = []
  if frozen:
    shapes = jax.eval_shape(model.init, keys.from_seed(0))
    hold = _multiplied(masks.trainable(shapes, frozen))
    chain.append(hold)
  if optim.clip_value:
    chain.append(optax.clip(optim.clip_value))
  if optim.clip_norm:
    clip = _clip_by_norm(
      optim.clip_norm, known=not (optim.clip_value or frozen)
    )
    chain.append(_scoped('clip', clip))
  if optim.name == 'muon':
    chain.append(_muon(cfg, model, mesh))
  else:
    direction = _DIRECTIONS[optim.name](optim)
    descend = _descend(cfg, model, direction, optim.learning_rate)
    chain.append(_scoped(optim.name, descend))
  if frozen:
    chain.append(hold)  # no weight decay either
  return optax.chain(*chain)


def _multiplied(factors: Params) -> optax.GradientTransformation:
  """Multiplies updates by the factors, leaf by leaf."""
  return optax.stateless(
    lambda updates, params: jax.tree.map(jnp.multiply, updates, factors)
  )


def _scoped(
  name: str, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  """Wraps a transformation in a named scope, by which a profile shows it."""
  inner = optax.with_extra_args_support(inner)
  update = jax.named_scope(name)(inner.update)
  return optax.GradientTransformationExtraArgs(inner.init, update)


def _clip_by_norm(
  most: float, known: bool
) -> optax.GradientTransformationExtraArgs:
  """`optax.clip_by_global_norm` that can reuse a norm computed before.

  Args:
    most: largest norm that is not clipped.
    known: whether `grad_norm` of `update` is the norm of its gradients.
  """

  def update(updates, state, params=None, *, grad_norm=None, **extra):
    del params, extra
    if grad_norm is None or not known:
      grad_norm = optax.tree.norm(updates)
    factor = jnp.where(grad_norm < most, 1.0, most / grad_norm)
    return jax.tree.map(lambda g: g * factor, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _descend(
  cfg: Config,
  model: Model,
  direction: optax.GradientTransformation,
  peak: float,
) -> optax.GradientTransformation:
  """Chains a direction, masked weight decay and the learning rate schedule."""
  optim = cfg.optim
  chain = [direction]
  if optim.weight_decay:
    mask = functools.partial(
      masks.decay_mask, model, decay_embeddings=optim.decay_embeddings
    )
    chain.append(optax.add_decayed_weights(optim.weight_decay, mask))
  schedule = run_schedule(optim, cfg.train, peak)
  chain.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*chain)


def _muon(
  cfg: Config, model: Model, mesh: Mesh | None
) -> optax.GradientTransformation:
  """Muon for hidden matrices and AdamW for all other parameters."""
  optim = cfg.optim
  muon = scale_by_muon(
    optim.momentum, model.policy.precision, mesh, model.sharding_rules
  )
  return optax.partition(
    {
      'muon': _scoped(
        'muon', _descend(cfg, model, muon, optim.muon_learning_rate)
      ),
      'adamw': _scoped(
        'adamw', _descend(cfg, model, _adamw(optim), optim.learning_rate)
      ),
    },
    functools.partial(masks.hidden_matrices, model),
  )


def _adamw(optim: Optim) -> optax.GradientTransformation:
  return optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)


def _lion(optim: Optim) -> optax.GradientTransformation:
  return optax.scale_by_lion(b1=optim.b1, b2=optim.b2)


def _adafactor(optim: Optim) -> optax.GradientTransformation:
  # Unlike the paper, does not scale updates by the parameter's norm: matrices
  # initialized to zero would hardly move, and learning_rate would not be
  # comparable to that of adamw.
  return optax.chain(
    optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
  )


def _sgd(optim: Optim) -> optax.GradientTransformation:
  return optax.trace(decay=optim.momentum, nesterov=True)


_DIRECTIONS: dict[str, Callable[[Optim], optax.GradientTransformation]] = {
  'adamw': _adamw,
  'lion': _lion,
  'adafactor': _adafactor,
  'sgd': _sgd,
}
