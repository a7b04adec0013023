"""Sharding rules: the mesh axis of each dim of parameters and activations.

Rules for parameters come from the model. Optimizer state and averaged
parameters are sharded like the parameter whose path and shape they share;
everything else (counts, factored moments) is replicated. Activations are
sharded by the letters of their dims (`craft_jax.types`).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from craft_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')  # every mesh has these

Rule = tuple[str | None, ...]  # the mesh axis of each dim of a parameter
Rules = Mapping[tuple[str, ...], Rule]  # keys are the end of a parameter's path

IN: Rule = (None, 'fsdp', 'tensor')  # [L, width, heads or hidden]
OUT: Rule = (None, 'tensor', 'fsdp')  # [L, heads or hidden, width]

# Sharded dims of activations; positions, width and vocabulary are replicated.
_DIMS: dict[str, str | tuple[str, ...]] = {
  'B': ('data', 'fsdp'),
  'N': 'tensor',
  'K': 'tensor',
  'F': 'tensor',
}


def activation_spec(dims: str) -> PartitionSpec:
  """PartitionSpec of an activation with these dims, such as 'BNTH'."""
  return PartitionSpec(*(_DIMS.get(dim) for dim in dims))


def kept_spec(rule: Rule, ndim: int) -> PartitionSpec:
  """PartitionSpec in which a parameter is stored.

  `ndim` is one less than the length of `rule` for a slice of one layer.
  """
  return PartitionSpec(*rule[len(rule) - ndim :])


def used_spec(rule: Rule, ndim: int) -> PartitionSpec:
  """PartitionSpec in which a parameter is used: `kept_spec` without `fsdp`."""
  kept = kept_spec(rule, ndim)
  return PartitionSpec(*(None if axis == 'fsdp' else axis for axis in kept))


def rule_of(names: tuple[str, ...], table: Rules) -> Rule:
  """The sharding rule whose key is the end of this parameter's path.

  Raises:
    UserError: no rule matches.
  """
  for end, rule in table.items():
    if names[-len(end) :] == end:
      return rule
  raise UserError(f'no sharding rule for parameter {"/".join(names)}')


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The entries of a JAX tree path as strings, for every kind of node."""
  return tuple(
    str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
    for k in path
  )


def param_specs(
  params: Any, mesh: Mesh, table: Rules
) -> dict[tuple[str, ...], PartitionSpec]:
  """PartitionSpec of each parameter by its path.

  Raises:
    UserError: a parameter has no rule, or a dim does not divide over its mesh
      axis.
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
  """Sharding of every array of a training state.

  Args:
    state: tree of arrays or shapes: parameters, optimizer state, averages.
    params: the parameters alone, arrays or shapes.
    mesh: mesh with the axes `data`, `fsdp` and `tensor`.
    table: sharding rules of the model.
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
