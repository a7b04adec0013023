"""The KV cache: arrays of static shape with one row per sequence."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from craft_jax.model.quantize import Quantized, quantized

# Keys or values of a layer; in int8 there is a scale per head and position.
Stored = Float[Array, 'B K S H'] | Quantized


@flax.struct.dataclass
class Cache:
  """The state of a model after reading some tokens.

  Lowering `length_B` rolls a row back: every architecture keeps one entry per
  position, and no entry depends on later ones.

  Attributes:
    layers: the architecture's own arrays, with B as first dim. The transformer
      has a tuple of keys (after RoPE) and values per layer; one stacked array
      would be copied whole at each step.
    token_BS: the cached tokens.
    segment_BS: document number of each cached token.
    length_B: number of cached tokens per row; entries past it are unspecified.
  """

  layers: Any
  token_BS: Int[Array, 'B S']
  segment_BS: Int[Array, 'B S']
  length_B: Int[Array, 'B']


def empty(shape: tuple[int, int, int, int], dtype: str) -> Stored:
  """Zeros of shape `[B, K, S, H]`, quantized if `dtype` is int8."""
  x_BKSH = jnp.zeros(shape, dtype)
  if dtype == 'int8':
    return Quantized(x_BKSH, jnp.zeros(shape[:-1], jnp.float32))
  return x_BKSH


def parts(
  stored: Stored,
) -> tuple[Num[Array, 'B K S H'], Float[Array, 'B K 1 S'] | float]:
  """Stored values, and the scale to multiply products with them by."""
  if isinstance(stored, Quantized):
    return stored.values, stored.scale[:, :, None]
  return stored, 1.0


def write(
  old: Stored, new_BKTH: Float[Array, 'B K T H'], start_B: Int[Array, 'B']
) -> Stored:
  """Writes each row at its own start; entries past the end are dropped.

  A dynamic-update-slice would shift such a write back onto valid entries.
  """

  def row(old_KS, new_KT, start):
    index_T = start + jnp.arange(new_KT.shape[1])
    return old_KS.at[:, index_T].set(new_KT.astype(old_KS.dtype), mode='drop')

  new = quantized(new_BKTH, -1) if isinstance(old, Quantized) else new_BKTH
  return jax.tree.map(
    lambda old, new: jax.vmap(row)(old, new, start_B), old, new
  )
