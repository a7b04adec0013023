"""Sharding constraints on activations, and FSDP gathering of parameters.

The model calls these with the dims of an activation or the rule of a
parameter. They use the mesh in context (`jax.set_mesh`) and do nothing without
one or inside `shard_map`, so that the same model runs on a single device.
"""

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Shaped

from craft_jax.model.sharding import rules


def spread(x: Shaped[Array, '...'], dims: str) -> Shaped[Array, '...']:
  """Constrains the sharding of an activation, with dims such as 'BTD'."""
  mesh = _mesh()
  return x if mesh is None else _pin(x, rules.activation_spec(dims), mesh)


def gather(
  param: Shaped[Array, '...'], rule: rules.Rule
) -> Shaped[Array, '...']:
  """All-gathers a parameter over `fsdp`; its gradient is reduce-scattered.

  Args:
    param: sharded parameter, or its slice for one layer.
    rule: mesh axis of each dim of the parameter.
  """
  mesh = _mesh()
  if mesh is None:
    return param
  # The transpose of these two constraints is the reduce-scatter.
  kept = _pin(param, rules.kept_spec(rule, param.ndim), mesh)
  return _pin(kept, rules.used_spec(rule, param.ndim), mesh)


def scatter(
  grad: Shaped[Array, '...'], rule: rules.Rule
) -> Shaped[Array, '...']:
  """Shards the gradient of a gathered parameter like the parameter itself."""
  mesh = _mesh()
  if mesh is None:
    return grad
  return _pin(grad, rules.kept_spec(rule, grad.ndim), mesh)


def gathers(rule: rules.Rule) -> bool:
  """Whether a parameter with this rule is sharded over `fsdp` in this mesh."""
  mesh = _mesh()
  return mesh is not None and mesh.shape['fsdp'] > 1 and 'fsdp' in rule


def _mesh() -> AbstractMesh | None:
  """The mesh in context, if it has our axes and all are automatic."""
  mesh = jax.sharding.get_abstract_mesh()
  ours = set(rules.AXES) <= set(mesh.axis_names)
  if not ours or mesh.size == 1:
    return None
  auto = all(kind == AxisType.Auto for kind in mesh.axis_types)
  return mesh if auto else None


def _pin(x: Array, spec: PartitionSpec, mesh: AbstractMesh) -> Array:
  """Constrains the sharding of `x`; a dim that does not divide stays whole.

  This concerns only the single rows of `init`, since settings that do not
  divide are refused before tracing.
  """
  entries = [
    axes if size % _count(axes, mesh) == 0 else None
    for size, axes in zip(x.shape, spec, strict=True)
  ]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))


def _count(axes, mesh: AbstractMesh) -> int:
  """Number of devices along one entry of a PartitionSpec."""
  count = 1
  for axis in (axes,) if isinstance(axes, str) else axes or ():
    count *= mesh.shape[axis]
  return count
