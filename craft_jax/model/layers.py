"""Linear layer, normalization and MLP."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.model.precision import Policy, kernel_einsum
from craft_jax.model.sharding import activations, rules


class Dense(nn.Module):
  """Linear layer without bias; the kernel has shape `[in, out]`.

  Attributes:
    features: width of the output.
    rule: mesh axis of each dim of the kernel.
    policy: precision of the matrix product and the platform.
    zero_init: whether the kernel starts at zero instead of a normal
      distribution with standard deviation 1/sqrt(in).
    remat: whether the surrounding layer is rematerialised.
  """

  features: int
  rule: rules.Rule
  policy: Policy
  zero_init: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, x_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T F']:
    init = (
      nn.initializers.zeros_init()
      if self.zero_init
      else nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    )
    kernel_DF = self.param('kernel', init, (x_BTD.shape[-1], self.features))
    return kernel_einsum(
      'BTD,DF->BTF', x_BTD, kernel_DF, self.rule, self.policy, self.remat
    )


def rms_norm(x: Float[Array, '*dims H']) -> Float[Array, '*dims H']:
  """RMSNorm (arXiv:1910.07467) of the last dim, without a learned scale."""
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


class Norm(nn.Module):
  """RMSNorm ('rms') or LayerNorm with bias, over the width."""

  kind: str

  @nn.compact
  def __call__(self, x_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    scale_D = self.param('scale', nn.initializers.ones_init(), x_BTD.shape[-1:])
    if self.kind == 'rms':
      return rms_norm(x_BTD) * scale_D.reshape(1, 1, -1)
    bias_D = self.param('bias', nn.initializers.zeros_init(), x_BTD.shape[-1:])
    centred = x_BTD - jnp.mean(x_BTD, axis=-1, keepdims=True)
    return rms_norm(centred) * scale_D.reshape(1, 1, -1) + bias_D.reshape(
      1, 1, -1
    )


_MOST_UNROLLED = 32  # layers


def unrolled(cfg: ModelConfig) -> int:
  """Number of layers per iteration of the scan over layers.

  A scan copies the saved activations into and out of stacked arrays: 12 layers
  of width 768 took 62.7 ms a step and 20 GB unrolled on an H200, 101.5 ms and
  34 GB scanned. Deep models are scanned to compile quickly, rematerialised ones
  because XLA would undo the rematerialisation of unrolled layers.
  """
  if cfg.unroll:
    return cfg.unroll
  whole = cfg.remat == 'none' and cfg.depth <= _MOST_UNROLLED
  return cfg.depth if whole else 1


_ACTIVATIONS = {
  'gelu': nn.gelu,
  'relu2': lambda x: jnp.square(nn.relu(x)),
  'swiglu': nn.silu,  # applied to the gate
}


def mlp_width(cfg: ModelConfig) -> int:
  """Hidden width of the MLP, by default 4 x width, or 8/3 x width if gated.

  Both have the same number of parameters (Shazeer, arXiv:2002.05202).
  """
  if cfg.mlp_width:
    return cfg.mlp_width
  if cfg.mlp != 'swiglu':
    return 4 * cfg.width
  return -(-8 * cfg.width // 3 // 8) * 8  # multiples of 8 shard and tile well


class Mlp(nn.Module):
  """MLP block, `width -> hidden -> width`, optionally gated."""

  cfg: ModelConfig
  policy: Policy

  @nn.compact
  def __call__(self, x_BTD: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    cfg, hidden = self.cfg, mlp_width(self.cfg)
    activation = _ACTIVATIONS[cfg.mlp]
    dense = functools.partial(
      Dense, policy=self.policy, remat=cfg.remat != 'none'
    )
    hidden_BTF = dense(hidden, rules.IN, name='in')(x_BTD)
    if cfg.mlp == 'swiglu':
      gate_BTF = dense(hidden, rules.IN, name='gate')(x_BTD)
      hidden_BTF = activation(gate_BTF) * hidden_BTF
    else:
      hidden_BTF = activation(hidden_BTF)
    hidden_BTF = activations.spread(hidden_BTF, 'BTF')
    out = dense(cfg.width, rules.OUT, zero_init=cfg.zero_init, name='out')
    return out(hidden_BTF)
