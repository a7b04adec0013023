"""Which mesh axis each dim of each parameter and activation is spread over.

The table of parameters is the model's own. Optimizer state and averaged weights
follow the parameter whose path and shape they share; everything else (counts,
factored moments) is replicated. Activations are known by the letters of their
dims (`craft_jax.types`).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from craft_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')  # of every mesh

Rule = tuple[str | None, ...]  # the mesh axis of each dim of a parameter
Rules = Mapping[tuple[str, ...], Rule]  # by the end of its path

IN: Rule = (None, 'fsdp', 'tensor')  # [L, width, heads or hidden]
OUT: Rule = (None, 'tensor', 'fsdp')  # [L, heads or hidden, width]

# Dims of activations; the others (positions, width, vocabulary) stay whole.
_DIMS: dict[str, str | tuple[str, ...]] = {
  'B': ('data', 'fsdp'),
  'N': 'tensor',
  'K': 'tensor',
  'F': 'tensor',
}


def activation_spec(dims: str) -> PartitionSpec:
  """The spec of an activation with these dims, such as `BNTH`."""
  return PartitionSpec(*(_DIMS.get(dim) for dim in dims))


def kept_spec(rule: Rule, ndim: int) -> PartitionSpec:
  """How a parameter, or its slice of one layer, lies between its uses.

  Args:
    rule: of the parameter.
    ndim: its dims; a slice of one layer lacks the first.
  """
  return PartitionSpec(*rule[len(rule) - ndim :])


def used_spec(rule: Rule, ndim: int) -> PartitionSpec:
  """How it lies while it is used: as it is kept, but gathered over `fsdp`.

  Args:
    rule: of the parameter.
    ndim: its dims; a slice of one layer lacks the first.
  """
  kept = kept_spec(rule, ndim)
  return PartitionSpec(*(None if axis == 'fsdp' else axis for axis in kept))


def rule_of(names: tuple[str, ...], table: Rules) -> Rule:
  """The entry of the table that a path ends with.

  Raises:
    UserError: there is none.
  """
  for end, rule in table.items():
    if names[-len(end) :] == end:
      return rule
  raise UserError(f'no sharding rule for parameter {"/".join(names)}')


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The keys of a tree path as strings, whatever kind of node they index."""
  return tuple(
    str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
    for k in path
  )


def param_specs(
  params: Any, mesh: Mesh, table: Rules
) -> dict[tuple[str, ...], PartitionSpec]:
  """The spec of each parameter by its path.

  Raises:
    UserError: a parameter that no rule names, or a dim that does not divide
      over its mesh axis.
  """
  specs = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = names_of(path)
    rule = rule_of(names, table)
    for dim, axis in enumerate(rule):
      if axis and leaf.shape[dim] % mesh.shape[axis]:
        raise UserError(
          f'dim {dim} of parameter {"/".join(names)}, {leaf.shape[dim]}, does '
          f'not divide over mesh.{axis}={mesh.shape[axis]}; change the model '
          'or the mesh'
        )
    specs[names] = PartitionSpec(*rule)
  return specs


def state_shardings(state: Any, params: Any, mesh: Mesh, table: Rules) -> Any:
  """A sharding for every array of `state`, a tree that holds `params`.

  Args:
    state: arrays or shapes: parameters, optimizer state, averages, counts.
    params: the parameters alone.
    mesh: with the axes `data`, `fsdp` and `tensor`.
    table: `Model.sharding_rules`.
  """
  specs = param_specs(params, mesh, table)
  shapes = {
    names_of(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def sharding(path, leaf):
    names = names_of(path)
    for start in range(len(names)):
      end = names[start:]
      # A factored moment has the path of its parameter but not its shape.
      if shapes.get(end) == leaf.shape and math.prod(leaf.shape) > 1:
        return NamedSharding(mesh, specs[end])
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(sharding, state)
