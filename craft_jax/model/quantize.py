"""Int8 quantization of parameters and KV caches, for inference only.

Symmetric absmax quantization (LLM.int8(), arXiv:2208.07339, section 2): entries
along one axis share a scale that maps the largest magnitude to 127. The
rounding error is at most half a scale.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from craft_jax.types import Params

_MOST = 127  # -128 is not used, to keep the range symmetric


@flax.struct.dataclass
class Quantized:
  """An int8 array with scales; its entries are `values * scale`.

  Attributes:
    values: int8, in the shape of the original array.
    scale: float32, in the same shape without the axis that shares a scale.
  """

  values: Int[Array, '...']
  scale: Float[Array, '...']


def quantized(x: Float[Array, '...'], axis: int) -> Quantized:
  """Quantizes `x` to int8 with one scale per slice along `axis`."""
  most = jnp.max(jnp.abs(x), axis=axis, keepdims=True).astype(jnp.float32)
  scale = most / _MOST
  values = jnp.round(x / jnp.where(scale == 0, 1.0, scale))
  return Quantized(values.astype(jnp.int8), jnp.squeeze(scale, axis))


def rows(
  tables_nRD: Float[Array, 'n R D'] | Quantized,
  table: int,
  row_BT: Int[Array, 'B T'],
) -> Float[Array, 'B T D']:
  """Looks up rows of one table, dequantized to float32 if it is quantized."""
  found = jax.tree.map(lambda leaf: leaf[table][row_BT], tables_nRD)
  if isinstance(found, Quantized):
    return found.values * found.scale[..., None]
  return found


def quantize(params: Params) -> Params:
  """Quantizes kernels per output and n-gram tables per row to int8.

  Norms and the small token embeddings stay float32.

  Args:
    params: from `Model.init` or `Model.for_decoding`.
  """

  def leaf(path, x):
    if isinstance(x, Quantized):
      return x
    if path[-1].key == 'kernel':
      return quantized(x, axis=-2)
    return quantized(x, axis=-1) if path[0].key == 'ngrams' else x

  return jax.tree_util.tree_map_with_path(
    leaf, params, is_leaf=lambda x: isinstance(x, Quantized)
  )
