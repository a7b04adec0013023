"""Masks of parameters: weight decay, and the optimizer that updates them.

The last name of a path is the kind of parameter (`kernel`, `embedding`,
`scale`, `bias`); the model knows which kernels are hidden matrices.
"""

from typing import Any

import jax

from craft_jax.model.protocol import Model
from craft_jax.model.sharding.rules import names_of
from craft_jax.types import Params

_KINDS = ('kernel', 'embedding', 'scale', 'bias')


def decay_mask(model: Model, params: Params, decay_embeddings: bool) -> Params:
  """Weight decay mask: True for each parameter that decays.

  Hidden matrices decay; scales and biases never do.

  Args:
    model: model that the parameters belong to.
    params: tree of parameters, in which subtrees may be masked.
    decay_embeddings: whether embeddings and the head decay, too.

  Raises:
    ValueError: a parameter is of unknown kind.
  """

  def decays(path: tuple[Any, ...], leaf: Any) -> bool:
    names = _known(path)
    if model.is_hidden_matrix(names):
      return True
    return decay_embeddings and names[-1] in ('embedding', 'kernel')

  return jax.tree_util.tree_map_with_path(decays, params)


def hidden_matrices(model: Model, params: Params) -> Params:
  """Labels hidden matrices `[L, in, out]` 'muon' and other parameters 'adamw'.

  Raises:
    ValueError: a parameter is of unknown kind, or a hidden matrix is not a
      stack of matrices.
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
  """The names of a path, after checking that the last is a known kind."""
  names = names_of(path)
  if names[-1] not in _KINDS:
    raise ValueError(
      f'parameter {jax.tree_util.keystr(path)} is of no known kind '
      f'({", ".join(_KINDS)})'
    )
  return names
