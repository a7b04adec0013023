"""The same model under a mesh: logits, gradients and the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from craft_jax.model.sharding import rules

VARIANTS = {
  'plain': {},
  'remat': {'remat': 'block'},
  'dots': {'remat': 'dots', 'unroll': 2},
  'all': {
    'tied': True,
    'norm': 'layer',
    'mlp': 'swiglu',
    'position': 'learned',
    'value_embeddings': True,
    'ngrams': 3,
    'ngram_rows': 64,
    'num_kv_heads': 2,
    'unroll': 0,
  },
  'bfloat16': {'precision': 'bfloat16'},
}


def placed(model, params, axis):
  """A mesh of two devices along `axis`, and the parameters on it."""
  shape = tuple(2 if name == axis else 1 for name in rules.AXES)
  mesh = jax.make_mesh(shape, rules.AXES, axis_types=(AxisType.Auto,) * 3)
  specs = rules.param_specs(params, mesh, model.sharding_rules)
  return mesh, jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.device_put(
      leaf, NamedSharding(mesh, specs[rules.names_of(path)])
    ),
    params,
  )


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_gradients_under_a_mesh(toy, tokens, loss, variant):
  model, params = toy(**VARIANTS[variant])
  x_BT = tokens(4, 13)
  grad = jax.value_and_grad(lambda params: loss(model, params, x_BT))
  want, want_grads = jax.jit(grad)(params)
  # A sum that is split rounds differently before it is rounded to bfloat16.
  rtol = 2e-2 if variant == 'bfloat16' else 2e-5
  for axis in ('fsdp', 'tensor'):
    mesh, spread = placed(model, params, axis)
    with jax.set_mesh(mesh):
      got, got_grads = jax.jit(grad)(spread)
    np.testing.assert_allclose(got, want, rtol=rtol)
    for path, leaf in jax.tree_util.tree_leaves_with_path(want_grads):
      other = got_grads
      for key in path:
        other = other[key.key]
      scale = float(jnp.abs(leaf).max())
      np.testing.assert_allclose(
        np.asarray(other), leaf, atol=rtol * scale, err_msg=f'{axis} {path}'
      )


@pytest.mark.parametrize('axis', ['fsdp', 'tensor'])
def test_extend_under_a_mesh(toy, tokens, axis):
  model, params = toy()
  x_BT = tokens(2, 6)
  length_B = jnp.full(2, 6)
  cache = model.init_cache(2, 8)
  extend = jax.jit(lambda *args: model.extend(*args))
  _, want = extend(params, cache, x_BT, length_B)
  mesh, params = placed(model, params, axis)
  with jax.set_mesh(mesh):
    _, got = extend(params, cache, x_BT, length_B)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
