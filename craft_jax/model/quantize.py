"""Parameters and caches of 8 bits, for a model that is used, not trained.

Numbers that meet in one product share a scale: the greatest of them is 127, the
others are rounded to the nearest whole one (symmetric, "absmax"; LLM.int8(),
arXiv:2208.07339, section 2). The error of each is at most half a scale.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from craft_jax.types import Params

_MOST = 127  # -128 is left out, so that the sign changes nothing


@flax.struct.dataclass
class Quantized:
  """An array in whole numbers; its entries are `values * scale`.

  Attributes:
    values: int8, in the place of the array.
    scale: float32, the same dims but for the one that shares it.
  """

  values: Int[Array, '...']
  scale: Float[Array, '...']


def quantized(x: Float[Array, '...'], axis: int) -> Quantized:
  """`x` with a scale for all entries along an axis; zeros stay zeros."""
  most = jnp.max(jnp.abs(x), axis=axis, keepdims=True).astype(jnp.float32)
  scale = most / _MOST
  values = jnp.round(x / jnp.where(scale == 0, 1.0, scale))
  return Quantized(values.astype(jnp.int8), jnp.squeeze(scale, axis))


def rows(
  tables_nRD: Float[Array, 'n R D'] | Quantized,
  table: int,
  row_BT: Int[Array, 'B T'],
) -> Float[Array, 'B T D']:
  """Rows of one of the tables, which may share a scale each."""
  found = jax.tree.map(lambda leaf: leaf[table][row_BT], tables_nRD)
  if isinstance(found, Quantized):
    return found.values * found.scale[..., None]
  return found


def quantize(params: Params) -> Params:
  """Parameters with int8 in the place of what is large, to be used as they are.

  Each output of a kernel has a scale, and each row of an n-gram table. The rest
  stays float32: norms, and the embeddings of tokens, which are few.

  Args:
    params: from `init`, or with `blocks` as `Decoder.layers` gives them.
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
