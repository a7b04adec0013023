"""What a model has read: static shapes, one row per sequence."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from craft_jax.model.quantize import Quantized, quantized

# Keys or values of a layer: in int8 each position of a head has a scale.
Stored = Float[Array, 'B K S H'] | Quantized


@flax.struct.dataclass
class Cache:
  """Everything read so far.

  With a lower `length_B` a row has read less: what architectures keep has an
  entry per position, and no entry depends on later ones.

  Attributes:
    layers: what the architecture keeps, arrays whose first dim is B. The
      transformer has a pair of keys, rotated where it rotates, and values for
      each layer: stacked, each step would copy those of all.
    token_BS: the cached tokens.
    segment_BS: document number of each.
    length_B: tokens held per row; entries past it are unspecified.
  """

  layers: Any
  token_BS: Int[Array, 'B S']
  segment_BS: Int[Array, 'B S']
  length_B: Int[Array, 'B']


def empty(shape: tuple[int, int, int, int], dtype: str) -> Stored:
  """Room for `[B, K, S, H]` numbers."""
  x_BKSH = jnp.zeros(shape, dtype)
  if dtype == 'int8':
    return Quantized(x_BKSH, jnp.zeros(shape[:-1], jnp.float32))
  return x_BKSH


def parts(
  stored: Stored,
) -> tuple[Num[Array, 'B K S H'], Float[Array, 'B K 1 S'] | float]:
  """What products read, and what their numbers are to be multiplied by."""
  if isinstance(stored, Quantized):
    return stored.values, stored.scale[:, :, None]
  return stored, 1.0


def write(
  old: Stored, new_BKTH: Float[Array, 'B K T H'], start_B: Int[Array, 'B']
) -> Stored:
  """Writes each row at its own start; what would fall off the end is dropped.

  A plain dynamic-update-slice would shift such a write back onto valid
  entries.
  """

  def row(old_KS, new_KT, start):
    index_T = start + jnp.arange(new_KT.shape[1])
    return old_KS.at[:, index_T].set(new_KT.astype(old_KS.dtype), mode='drop')

  new = quantized(new_BKTH, -1) if isinstance(old, Quantized) else new_BKTH
  return jax.tree.map(
    lambda old, new: jax.vmap(row)(old, new, start_B), old, new
  )
