"""Masks of parameters: weight decay, and the optimizer that updates them.

The last name of a path is the kind of parameter (`kernel`, `embedding`,
`scale`, `bias`); the model knows which kernels are hidden matrices.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from craft_jax.errors import UserError
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


def trainable(params: Params, frozen: Sequence[str]) -> Params:
  """What each update is multiplied by: 0 where a parameter stays, else 1.

  Args:
    params: any tree of the model's parameters, or of their shapes.
    frozen: starts of paths, such as `embed`, `blocks.mlp` for the MLPs of all
      layers, or `blocks.0` and `blocks.0.mlp` for those of one layer.

  Returns:
    A number per leaf, or an array `[L, 1, ...]` for a stack of layers.

  Raises:
    UserError: one of them is no parameter, or all parameters are frozen.
  """
  found = set[str]()

  def factor(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
    names = names_of(path)
    factors = np.ones(leaf.shape[:1] + (1,) * (leaf.ndim - 1), np.float32)
    for pattern in frozen:
      head, *rest = pattern.split('.')
      layer = rest.pop(0) if rest and rest[0].isdecimal() else None
      if names[: 1 + len(rest)] != (head, *rest):
        continue
      if layer is None:
        factors[:] = 0
      elif head == 'blocks' and int(layer) < len(factors):
        factors[int(layer)] = 0
      else:
        continue
      found.add(pattern)
    # A number alone does not stand in the way of sharding.
    mixed = factors.any() and not factors.all()
    return factors if mixed else np.asarray(factors.max())

  factors = jax.tree_util.tree_map_with_path(factor, params)
  if missing := [pattern for pattern in frozen if pattern not in found]:
    raise UserError(
      f'train.freeze: there is no parameter {missing[0]}; the model has '
      f'{", ".join(params)}, and blocks.0 is its first layer'
    )
  if not any(np.any(leaf) for leaf in jax.tree.leaves(factors)):
    raise UserError('train.freeze leaves nothing to train; freeze less')
  return factors


def _known(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The names of a path, after checking that the last is a known kind."""
  names = names_of(path)
  if names[-1] not in _KINDS:
    raise ValueError(
      f'parameter {jax.tree_util.keystr(path)} is of no known kind '
      f'({", ".join(_KINDS)})'
    )
  return names
