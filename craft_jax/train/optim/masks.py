"""Which parameters decay, and which optimizer a parameter belongs to.

Both are read off the path of a leaf: its last name is its kind (`kernel`,
`embedding`, `scale`, `bias`), its first the part of the model.
"""

import functools
from typing import Any

import jax

from craft_jax.types import Params

_KINDS = ('kernel', 'embedding', 'scale', 'bias')


def decay_mask(params: Params, decay_embeddings: bool) -> Params:
  """True for each leaf that weight decay shrinks.

  Matrices decay; scales and biases never do. The embeddings (of symbols,
  positions and values) and the head decay only if `decay_embeddings`.

  Args:
    params: any tree of the model's parameters, masked subtrees allowed.
    decay_embeddings: include the tables that are indexed by a symbol.

  Raises:
    ValueError: a leaf of a kind that no rule covers.
  """

  def decays(path: tuple[Any, ...], leaf: Any) -> bool:
    first, kind = _ends(path)
    if kind == 'embedding' or first == 'head':
      return decay_embeddings and kind in ('embedding', 'kernel')
    return kind == 'kernel'

  return jax.tree_util.tree_map_with_path(decays, params)


def hidden_matrices(params: Params) -> Params:
  """`'muon'` for the kernels `[L, in, out]` of the blocks, else `'adamw'`.

  Raises:
    ValueError: a leaf of a kind that no rule covers, or a kernel in the blocks
      that is not a stack of matrices.
  """

  def label(path: tuple[Any, ...], leaf: Any) -> str:
    first, kind = _ends(path)
    if first != 'blocks' or kind != 'kernel':
      return 'adamw'
    if leaf.ndim != 3:
      name = jax.tree_util.keystr(path)
      raise ValueError(f'{name}{leaf.shape} is not a stack [L, in, out]')
    return 'muon'

  return jax.tree_util.tree_map_with_path(label, params)


def _ends(path: tuple[Any, ...]) -> tuple[str, str]:
  """First and last name of a path; the last must be a known kind."""
  first, kind = path[0].key, path[-1].key
  if kind not in _KINDS:
    raise ValueError(
      f'parameter {jax.tree_util.keystr(path)} is of no known kind '
      f'({", ".join(_KINDS)})'
    )
  return first, kind


def decay_mask_fn(decay_embeddings: bool) -> functools.partial:
  """`decay_mask` waiting for its parameters, as optax takes it."""
  return functools.partial(decay_mask, decay_embeddings=decay_embeddings)
