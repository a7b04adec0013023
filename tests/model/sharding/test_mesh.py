"""How devices are chosen and arrays are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config import load as config_lib
from craft_jax.errors import UserError
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.model.sharding import rules
from craft_jax.train.run import open_setup

HERE = platform_of(jax.devices()[0])


@pytest.mark.parametrize(
  'cores, overrides, want',
  [
    (1, [], 1),
    (2, ['train.batch_size=12'], 2),
    (8, ['train.batch_size=12', 'eval.batch_size=12'], 6),
    (8, ['train.batch_size=12', 'train.accumulate=3'], 4),
    (8, ['train.batch_size=7', 'eval.batch_size=7'], 7),
    (4, ['train.batch_size=7'], 1),
    (8, ['mesh.tensor=2', 'train.batch_size=6', 'eval.batch_size=6'], 6),
    (8, ['mesh.data=2', 'mesh.fsdp=-1', 'train.batch_size=8'], 8),
    (2, ['mesh.data=1', 'mesh.fsdp=2', 'mesh.tensor=2'], 4),
    (64, ['mesh.cpu_devices=3'], 3),
  ],
)
def test_cpu_devices(monkeypatch, cores, overrides, want):
  monkeypatch.setattr(mesh_lib, 'usable_cores', lambda: cores)
  assert mesh_lib.cpu_devices(config_lib.load_config('toy', overrides)) == want


def test_usable_cores():
  assert mesh_lib.usable_cores() >= 1


def test_mesh_takes_all_devices():
  cfg = config_lib.load_config('toy', ['mesh.data=1', 'mesh.fsdp=-1'])
  assert dict(mesh_lib.make_mesh(cfg).shape) == {
    'data': 1,
    'fsdp': jax.device_count(),
    'tensor': 1,
  }


@pytest.mark.parametrize(
  'overrides, words',
  [
    (['mesh.data=3'], ['mesh.data=3', 'devices']),
    (['mesh.data=1'], ['mesh.data=1', '2 devices']),
    (['train.batch_size=7'], ['train.batch_size', 'multiple of 2']),
    (['eval.batch_size=7'], ['eval.batch_size', 'multiple of 2']),
  ],
)
def test_impossible_meshes(overrides, words):
  cfg = config_lib.load_config('toy', overrides)
  with pytest.raises(UserError) as e:
    config_lib.check_devices(cfg, 2)
  assert all(word in str(e.value) for word in words)


def test_put_batch_spreads_rows():
  mesh = mesh_lib.data_mesh(4)
  array = np.arange(8).reshape(4, 2)
  (placed,) = mesh_lib.put_batch((array,), mesh_lib.batch_sharding(mesh))
  np.testing.assert_array_equal(placed, array)
  assert placed.addressable_shards[0].data.shape == (4 // mesh.size, 2)


@pytest.mark.parametrize('tied', ['true', 'false'])
def test_every_parameter_has_a_rule(tied):
  cfg = config_lib.load_config(
    'toy',
    [
      f'model.tied={tied}',
      'model.norm=layer',
      'model.mlp=swiglu',
      'model.position=learned',
      'model.value_embeddings=true',
      'mesh.data=1',
      'mesh.tensor=-1',
    ],
  )
  model = build(cfg.model, 260, HERE)
  params = jax.eval_shape(model.init, jax.random.key(0))
  mesh = mesh_lib.make_mesh(cfg)
  specs = rules.param_specs(params, mesh, model.sharding_rules)
  assert len(specs) == len(jax.tree.leaves(params))


def test_rules_refuse():
  mesh = mesh_lib.make_mesh(config_lib.load_config('toy', ['mesh.tensor=2']))
  odd = {'mlp': {'in': {'kernel': jnp.zeros((2, 4, 3))}}}
  with pytest.raises(UserError, match=r'mlp/in/kernel, 3, does not divide'):
    rules.param_specs(odd, mesh, {('in', 'kernel'): rules.IN})
  with pytest.raises(UserError, match='no sharding rule for parameter novel/x'):
    rules.param_specs({'novel': {'x': jnp.zeros(3)}}, mesh, {})


@pytest.mark.parametrize(
  'overrides, words',
  [
    (['model.num_heads=1'], ['model.num_heads=1', 'mesh.tensor', 'multiple']),
    (['model.num_kv_heads=1'], ['model.num_kv_heads=1', 'mesh.tensor']),
  ],
)
def test_heads_divide(overrides, words):
  def check(overrides, shards):
    cfg = config_lib.load_config('toy', overrides)
    build(cfg.model, 1, HERE).check_tensor(shards)

  with pytest.raises(UserError) as e:
    check(overrides, 2)
  assert all(word in str(e.value) for word in words)
  check(overrides, 1)
  check([], 2)


def test_a_run_refuses_heads_that_do_not_divide(tmp_path):
  flags = ['mesh.data=1', 'mesh.tensor=2', 'model.num_heads=1']
  with pytest.raises(UserError, match=r'model\.num_heads=1'):
    open_setup(config_lib.load_config('toy', flags), tmp_path / 'run')
