"""The key/value cache: static shapes, one row per sequence."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Cache:
  """Keys and values of everything read so far.

  Layers are arrays of their own: stacked, each step would copy all of them.

  Attributes:
    keys: of each layer, rotated where the model rotates.
    values: of each layer.
    symbol_BS: the cached symbols.
    segment_BS: document number of each.
    length_B: symbols held per row; entries past it are unspecified.
  """

  keys: tuple[Float[Array, 'B K S H'], ...]
  values: tuple[Float[Array, 'B K S H'], ...]
  symbol_BS: Int[Array, 'B S']
  segment_BS: Int[Array, 'B S']
  length_B: Int[Array, 'B']


def write(
  old_BKSH: Float[Array, 'B K S H'],
  new_BKTH: Float[Array, 'B K T H'],
  start_B: Int[Array, 'B'],
) -> Float[Array, 'B K S H']:
  """Writes each row at its own start; what would fall off the end is dropped.

  A plain dynamic-update-slice would shift such a write back onto valid
  entries.
  """

  def row(old_KSH, new_KTH, start):
    index_T = start + jnp.arange(new_KTH.shape[1])
    return old_KSH.at[:, index_T].set(
      new_KTH.astype(old_KSH.dtype), mode='drop'
    )

  return jax.vmap(row)(old_BKSH, new_BKTH, start_B)
