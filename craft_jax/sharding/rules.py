"""Which mesh axis each dim of each parameter is spread over.

The table reads a parameter's path from its end. Optimizer state and averaged
weights follow the parameter whose path and shape they share; everything else
(counts, factored moments) is replicated.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from craft_jax.errors import UserError

_IN = (None, 'fsdp', 'tensor')  # [L, width, heads or hidden]
_OUT = (None, 'tensor', 'fsdp')  # [L, heads or hidden, width]

# The vocabulary is small and rarely divides: it stays whole.
_RULES: dict[tuple[str, ...], tuple[str | None, ...]] = {
  ('embed', 'embedding'): (None, 'fsdp'),
  ('positions', 'embedding'): (None, 'fsdp'),
  ('head', 'kernel'): ('fsdp', None),
  ('final_norm', 'scale'): (None,),
  ('final_norm', 'bias'): (None,),
  ('attention_norm', 'scale'): (None, None),
  ('attention_norm', 'bias'): (None, None),
  ('mlp_norm', 'scale'): (None, None),
  ('mlp_norm', 'bias'): (None, None),
  ('attention', 'query', 'kernel'): _IN,
  ('attention', 'key', 'kernel'): _IN,
  ('attention', 'value', 'kernel'): _IN,
  ('attention', 'output', 'kernel'): _OUT,
  ('attention', 'value_embedding', 'embedding'): (None, None, 'tensor'),
  ('mlp', 'in', 'kernel'): _IN,
  ('mlp', 'gate', 'kernel'): _IN,
  ('mlp', 'out', 'kernel'): _OUT,
}


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The keys of a tree path as strings, whatever kind of node they index."""
  return tuple(
    str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
    for k in path
  )


def param_specs(
  params: Any, mesh: Mesh
) -> dict[tuple[str, ...], PartitionSpec]:
  """The spec of each parameter by its path.

  Raises:
    UserError: a parameter that no rule names, or a dim that does not divide
      over its mesh axis.
  """
  specs = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = _names(path)
    rule = next(
      (r for end, r in _RULES.items() if names[-len(end) :] == end), None
    )
    if rule is None:
      raise UserError(f'no sharding rule for parameter {"/".join(names)}')
    for dim, axis in enumerate(rule):
      if axis and leaf.shape[dim] % mesh.shape[axis]:
        raise UserError(
          f'dim {dim} of parameter {"/".join(names)}, {leaf.shape[dim]}, does '
          f'not divide over mesh.{axis}={mesh.shape[axis]}; change the model '
          'or the mesh'
        )
    specs[names] = PartitionSpec(*rule)
  return specs


def state_shardings(state: Any, params: Any, mesh: Mesh) -> Any:
  """A sharding for every array of `state`, a tree that holds `params`.

  Args:
    state: arrays or shapes: parameters, optimizer state, averages, counts.
    params: the parameters alone.
    mesh: with the axes `data`, `fsdp` and `tensor`.
  """
  specs = param_specs(params, mesh)
  shapes = {
    _names(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def sharding(path, leaf):
    names = _names(path)
    for start in range(len(names)):
      end = names[start:]
      # A factored moment has the path of its parameter but not its shape.
      if shapes.get(end) == leaf.shape and math.prod(leaf.shape) > 1:
        return NamedSharding(mesh, specs[end])
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(sharding, state)
