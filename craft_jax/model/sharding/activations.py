"""Where activations live, and where parameters are when they are used.

The model calls these with the dims of an activation or the rule of a
parameter. The mesh is the one in context (`jax.set_mesh`); without one, or
inside a `shard_map`, nothing happens, so the model runs as it is on one device
and while sampling.
"""

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Shaped

from craft_jax.model.sharding import rules


def spread(x: Shaped[Array, '...'], dims: str) -> Shaped[Array, '...']:
  """Pins an activation, and its gradient, to the devices of its rows.

  Args:
    x: an activation.
    dims: a letter of each dim, as in `x_BTD`.
  """
  mesh = _mesh()
  return x if mesh is None else _pin(x, rules.activation_spec(dims), mesh)


def gather(
  param: Shaped[Array, '...'], rule: rules.Rule
) -> Shaped[Array, '...']:
  """A parameter, or its slice of one layer, whole on every `fsdp` device.

  Its gradient comes back spread over the devices as the parameter is.

  Args:
    param: as it is kept.
    rule: the mesh axis of each of its dims.
  """
  mesh = _mesh()
  if mesh is None:
    return param
  # Transposed, this is: sum the gradient, then keep one's own part.
  kept = _pin(param, rules.kept_spec(rule, param.ndim), mesh)
  return _pin(kept, rules.used_spec(rule, param.ndim), mesh)


def scatter(
  grad: Shaped[Array, '...'], rule: rules.Rule
) -> Shaped[Array, '...']:
  """The gradient of a gathered parameter, spread as the parameter is kept."""
  mesh = _mesh()
  if mesh is None:
    return grad
  return _pin(grad, rules.kept_spec(rule, grad.ndim), mesh)


def gathers(rule: rules.Rule) -> bool:
  """Whether `gather` has anything to do for a parameter in this context."""
  mesh = _mesh()
  return mesh is not None and mesh.shape['fsdp'] > 1 and 'fsdp' in rule


def _mesh() -> AbstractMesh | None:
  """The mesh in context, if the program's own and shared by the compiler."""
  mesh = jax.sharding.get_abstract_mesh()
  ours = set(rules.AXES) <= set(mesh.axis_names)
  if not ours or mesh.size == 1:
    return None
  auto = all(kind == AxisType.Auto for kind in mesh.axis_types)
  return mesh if auto else None


def _pin(x: Array, spec: PartitionSpec, mesh: AbstractMesh) -> Array:
  """Constrains `x`; a dim that does not divide stays whole.

  Only the single rows of `init` do not: settings that do not divide are
  refused before anything is traced.
  """
  entries = [
    axes if size % _count(axes, mesh) == 0 else None
    for size, axes in zip(x.shape, spec, strict=True)
  ]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))


def _count(axes, mesh: AbstractMesh) -> int:
  """Devices along an entry of a spec."""
  count = 1
  for axis in (axes,) if isinstance(axes, str) else axes or ():
    count *= mesh.shape[axis]
  return count
