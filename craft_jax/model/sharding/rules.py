"""Which mesh axis each dim of each parameter and activation is spread over.

The table of parameters is read from the end of their paths. Optimizer state
and averaged weights follow the parameter whose path and shape they share;
everything else (counts, factored moments) is replicated. Activations are known
by the letters of their dims (`craft_jax.types`).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')  # of every mesh

_IN = (None, 'fsdp', 'tensor')  # [L, width, heads or hidden]
_OUT = (None, 'tensor', 'fsdp')  # [L, heads or hidden, width]

# The vocabulary is small and rarely divides: it stays whole.
_RULES: dict[tuple[str, ...], tuple[str | None, ...]] = {
  ('embed', 'embedding'): (None, 'fsdp'),
  ('positions', 'embedding'): (None, 'fsdp'),
  ('ngrams', 'embedding'): (None, None, 'fsdp'),
  ('head', 'kernel'): ('fsdp', None),
  ('final_norm', 'scale'): (None,),
  ('final_norm', 'bias'): (None,),
  ('attention_norm', 'scale'): (None, None),
  ('attention_norm', 'bias'): (None, None),
  ('mlp_norm', 'scale'): (None, None),
  ('mlp_norm', 'bias'): (None, None),
  ('query', 'kernel'): _IN,
  ('key', 'kernel'): _IN,
  ('value', 'kernel'): _IN,
  ('output', 'kernel'): _OUT,
  ('value_embedding', 'embedding'): (None, None, 'tensor'),
  ('in', 'kernel'): _IN,
  ('gate', 'kernel'): _IN,
  ('out', 'kernel'): _OUT,
}

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


def kept_spec(names: Sequence[str], ndim: int) -> PartitionSpec:
  """How a parameter, or its slice of one layer, lies between its uses.

  Args:
    names: its path, or the end of it.
    ndim: its dims; a slice of one layer lacks the first.

  Raises:
    UserError: no rule names it.
  """
  rule = _rule(tuple(names))
  return PartitionSpec(*rule[len(rule) - ndim :])


def used_spec(names: Sequence[str], ndim: int) -> PartitionSpec:
  """How it lies while it is used: as it is kept, but gathered over `fsdp`.

  Args:
    names: its path, or the end of it.
    ndim: its dims; a slice of one layer lacks the first.

  Raises:
    UserError: no rule names it.
  """
  kept = kept_spec(names, ndim)
  return PartitionSpec(*(None if axis == 'fsdp' else axis for axis in kept))


def check_heads(cfg: ModelConfig, shards: int) -> None:
  """Refuses heads that do not divide over the axis `tensor`.

  Args:
    cfg: reads the numbers of heads.
    shards: devices of the axis.

  Raises:
    UserError: names the setting.
  """
  for name in ('num_heads', 'num_kv_heads'):
    heads = getattr(cfg, name)
    if heads % shards:
      raise UserError(
        f'model.{name}={heads} does not divide over the {shards} devices of '
        f'mesh.tensor; use a multiple of {shards}, or a mesh.tensor that '
        f'divides {heads}'
      )


def _rule(names: tuple[str, ...]) -> tuple[str | None, ...]:
  """The entry of the table that a path ends with."""
  for end, rule in _RULES.items():
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
  params: Any, mesh: Mesh
) -> dict[tuple[str, ...], PartitionSpec]:
  """The spec of each parameter by its path.

  Raises:
    UserError: a parameter that no rule names, or a dim that does not divide
      over its mesh axis.
  """
  specs = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = names_of(path)
    rule = _rule(names)
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
