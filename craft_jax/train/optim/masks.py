"""Which parameters decay, and which optimizer a parameter belongs to.

The last name of a path is the kind of the parameter (`kernel`, `embedding`,
`scale`, `bias`); the model says which kernels are hidden matrices.
"""

from typing import Any

import jax

from craft_jax.model.protocol import Model
from craft_jax.model.sharding.rules import names_of
from craft_jax.types import Params

_KINDS = ('kernel', 'embedding', 'scale', 'bias')


def decay_mask(model: Model, params: Params, decay_embeddings: bool) -> Params:
  """True for each leaf that weight decay shrinks.

  Hidden matrices decay; scales and biases never do. The embeddings (of tokens,
  positions and values) and the head decay only if `decay_embeddings`.

  Args:
    model: knows its hidden matrices.
    params: any tree of the model's parameters, masked subtrees allowed.
    decay_embeddings: include the tables that are indexed by a token.

  Raises:
    ValueError: a leaf of a kind that no rule covers.
  """

  def decays(path: tuple[Any, ...], leaf: Any) -> bool:
    names = _known(path)
    if model.is_hidden_matrix(names):
      return True
    return decay_embeddings and names[-1] in ('embedding', 'kernel')

  return jax.tree_util.tree_map_with_path(decays, params)


def hidden_matrices(model: Model, params: Params) -> Params:
  """`'muon'` for the hidden matrices `[L, in, out]`, else `'adamw'`.

  Raises:
    ValueError: a leaf of a kind that no rule covers, or a hidden matrix that is
      not a stack of matrices.
  """

  def label(path: tuple[Any, ...], leaf: Any) -> str:
    if not model.is_hidden_matrix(_known(path)):
      return 'adamw'
    if leaf.ndim != 3:
      name = jax.tree_util.keystr(path)
      raise ValueError(f'{name}{leaf.shape} is not a stack [L, in, out]')
    return 'muon'

  return jax.tree_util.tree_map_with_path(label, params)


def _known(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The names of a path; the last must be a known kind."""
  names = names_of(path)
  if names[-1] not in _KINDS:
    raise ValueError(
      f'parameter {jax.tree_util.keystr(path)} is of no known kind '
      f'({", ".join(_KINDS)})'
    )
  return names
