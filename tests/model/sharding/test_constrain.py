"""Constraints follow the mesh in context, and are nothing without one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from craft_jax.errors import UserError
from craft_jax.model.sharding import activations, rules
from craft_jax.model.sharding.mesh import AXES

KERNEL = rules.IN


def mesh(names=AXES, shape=(1, 2, 1), kind=AxisType.Auto):
  devices = jax.devices()[: math.prod(shape)]
  return jax.make_mesh(shape, names, axis_types=(kind,) * 3, devices=devices)


def constraints(function, *args):
  """How many constraints a function has."""
  return str(jax.make_jaxpr(function)(*args)).count('sharding_constraint[')


def spread(x_BT):
  return activations.spread(x_BT, 'BT')


def test_nothing_without_a_mesh():
  x_BT = jnp.zeros((4, 3))
  assert spread(x_BT) is x_BT
  assert activations.gather(x_BT, KERNEL) is x_BT
  assert activations.scatter(x_BT, KERNEL) is x_BT
  assert not activations.gathers(KERNEL)


@pytest.mark.parametrize(
  'changes',
  [
    {'names': ('x', 'y', 'z')},
    {'kind': AxisType.Explicit},
    {'shape': (1, 1, 1)},
  ],
  ids=['foreign', 'explicit', 'one device'],
)
def test_nothing_under_other_meshes(changes):
  x_BT = jnp.zeros((4, 3))
  with jax.set_mesh(mesh(**changes)):
    assert constraints(spread, x_BT) == 0
  with jax.set_mesh(mesh()):
    assert constraints(spread, x_BT) == 1


def test_nothing_in_manual_code():
  with jax.set_mesh(mesh()):
    inner = jax.shard_map(
      spread, in_specs=PartitionSpec('fsdp'), out_specs=PartitionSpec('fsdp')
    )
    assert constraints(inner, jnp.zeros((4, 3))) == 0


def test_rows_are_spread():
  with jax.set_mesh(mesh()):
    placed = jax.jit(spread)(jnp.zeros((4, 3)))
    alone = jax.jit(spread)(jnp.zeros((3, 3)))  # does not divide: left whole
  assert placed.addressable_shards[0].data.shape == (2, 3)
  assert alone.addressable_shards[0].data.shape == (3, 3)


def test_gradients_of_gathered_parameters_are_spread():
  kernel = jnp.arange(8.0).reshape(4, 2)
  with jax.set_mesh(mesh()):
    whole = jax.jit(lambda k: activations.gather(k, KERNEL))(kernel)
    grad = jax.jit(
      jax.grad(lambda k: (activations.gather(k, KERNEL) ** 2).sum())
    )
    part = grad(kernel)
  assert whole.addressable_shards[0].data.shape == (4, 2)
  assert part.addressable_shards[0].data.shape == (2, 2)
  np.testing.assert_array_equal(part, 2 * kernel)


def test_specs():
  assert rules.activation_spec('BNTH') == PartitionSpec(
    ('data', 'fsdp'), 'tensor', None, None
  )
  for ndim, lead in ((3, [None]), (2, [])):
    kept = rules.kept_spec(KERNEL, ndim)
    assert kept == PartitionSpec(*lead, 'fsdp', 'tensor')
    used = rules.used_spec(KERNEL, ndim)
    assert used == PartitionSpec(*lead, None, 'tensor')
  with pytest.raises(UserError, match='no sharding rule for parameter novel/x'):
    rules.rule_of(('novel', 'x'), {})
