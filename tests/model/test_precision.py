"""The precision policy: what is rounded, what is summed, and that it runs."""

import collections
import functools
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.model import precision
from craft_jax.model.precision import (
  Policy,
  einsum,
  platform_of,
  resolve_precision,
)

HERE = platform_of(jax.devices()[0])
ROUNDED, EXACT = Policy('bfloat16', HERE), Policy('float32', HERE)

SPECS = {
  'BTD,DF->BTF': ((2, 5, 6), (6, 7)),
  'BTD,VD->BTV': ((2, 5, 6), (7, 6)),
  'BKGH,BKSH->BKGS': ((2, 3, 4, 8), (2, 3, 5, 8)),
  'BKGS,BKSH->BKGH': ((2, 3, 4, 5), (2, 3, 5, 8)),
}


def rounded(x):
  return x.astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize('spec', SPECS)
def test_einsum_rounds_operands_only(spec):
  """Equal to the float32 product of rounded operands, forward and backward."""
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.normal(size=s), 'float32') for s in SPECS[spec])
  got, pull = jax.vjp(lambda a, b: einsum(spec, a, b, ROUNDED), a, b)
  want, pull_exact = jax.vjp(
    lambda a, b: einsum(spec, a, b, EXACT), rounded(a), rounded(b)
  )
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  g = jnp.asarray(rng.normal(size=got.shape), 'float32')
  pairs = zip(pull(g), pull_exact(rounded(g)), strict=True)
  for gradient, exact in pairs:
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, exact, rtol=1e-5, atol=1e-5)
  # And so within a rounding error (2^-9 per operand) of the true product.
  exact = np.einsum(spec, np.asarray(a, float), np.asarray(b, float))
  error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
  assert 1e-4 < error < 2 * 2**-9


def test_einsum_float32_is_exact():
  a, b = jax.random.normal(jax.random.key(0), (2, 1, 64, 64))
  got = einsum('BTD,DF->BTF', a, b[0], EXACT)
  want = np.asarray(a, float) @ np.asarray(b[0], float)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_einsum_refuses_scattered_batch_dims():
  """The form that a CPU compiles and then cannot run (docs/architecture.md)."""
  x = jnp.ones((1, 2, 3, 4))
  with pytest.raises(AssertionError, match='BTNH'):
    einsum('BTNH,BSNH->BNTS', x, x, ROUNDED)


def test_resolve(monkeypatch):
  for has, want in ((True, 'bfloat16'), (False, 'float32')):
    monkeypatch.setattr(precision, '_cpu_has_bfloat16', lambda has=has: has)
    cpu = platform_of(types.SimpleNamespace(platform='cpu'))
    assert resolve_precision('auto', cpu) == want
    assert resolve_precision('float32', cpu) == 'float32'
    assert resolve_precision('bfloat16', cpu) == 'bfloat16'


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('processor : 0\nflags\t\t: fpu avx512_bf16 sse\n', True),
    ('flags\t\t: fpu amx_bf16 amx_tile\nflags : x\n', True),
    ('flags\t\t: fpu avx512f avx2\n', False),
    ('Features\t: fp asimd\n', False),
    (None, False),
  ],
)
def test_cpu_flags(text, want, tmp_path, monkeypatch):
  path = tmp_path / 'cpuinfo'
  if text is not None:
    path.write_text(text)
  monkeypatch.setattr(precision, 'open', lambda _: path.open(), raising=False)
  assert precision._cpu_has_bfloat16() is want


@pytest.mark.parametrize(
  ('capability', 'want'),
  [('9.0', True), ('8.0', True), ('7.5', False), ('gfx90a', True)],
)
def test_accelerators(capability, want):
  device = types.SimpleNamespace(platform='gpu', compute_capability=capability)
  assert platform_of(device).bfloat16 is want
  assert platform_of(types.SimpleNamespace(platform='tpu')).bfloat16


def products(jaxpr):
  """Operand and result types of every product, also inside inner jaxprs."""
  for equation in jaxpr.eqns:
    assert 'conv_general' not in equation.primitive.name
    if equation.primitive.name == 'dot_general':
      yield tuple(
        str(v.aval.dtype) for v in (*equation.invars, *equation.outvars)
      )
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from products(inner)


@pytest.mark.parametrize('name', ['bfloat16', 'float32'])
@pytest.mark.parametrize(
  'settings',
  [
    {'tied': True, 'remat': 'dots', 'mlp': 'gelu'},
    {'num_kv_heads': 2, 'mlp': 'swiglu', 'value_embeddings': True},
    {'num_kv_heads': 1, 'position': 'alibi', 'norm': 'layer', 'remat': 'block'},
  ],
  ids=['tied', 'gqa', 'mqa'],
)
def test_every_product_has_the_form(name, settings, toy, loss, tokens):
  model, params = toy(precision=name, **settings)
  step = jax.value_and_grad(functools.partial(loss, model))
  found = list(products(jax.make_jaxpr(step)(params, tokens(2, 9)).jaxpr))
  assert len(found) >= 3 * 9
  assert set(found) == {(name, name, 'float32')}
  cache = model.init_cache(2, 12)
  args = (params, cache, tokens(2, 3), jnp.full(2, 3))
  found = collections.Counter(
    products(jax.make_jaxpr(model.extend)(*args).jaxpr)
  )
  # A CPU multiplies the cache with few rows in float32: two a layer.
  widened = name == 'bfloat16' and jax.default_backend() == 'cpu'
  cached = found.pop(('float32',) * 3, 0) if widened else 0
  assert cached == (2 * model.cfg.depth if widened else 0)
  assert set(found) == {(name, name, 'float32')}


def gradients(toy, loss, x_BT, **settings):
  out = []
  for name in ('float32', 'bfloat16'):
    model, params = toy(precision=name, **settings)
    step = jax.value_and_grad(functools.partial(loss, model))
    out.append(jax.jit(step)(params, x_BT))
  return out


@pytest.mark.slow
def test_gradients_near_float32(toy, loss, tokens):
  """Two or three roundings of 2^-9 in a row, averaged: a percent or two."""
  exact, close = gradients(toy, loss, tokens(4, 12), tied=True)
  np.testing.assert_allclose(close[0], exact[0], rtol=1e-2)
  pairs = zip(jax.tree.leaves(close[1]), jax.tree.leaves(exact[1]), strict=True)
  for got, want in pairs:
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)


# Run in a process, because the number of devices is fixed at the start. Sizes
# are odd where a library might want multiples, and real where it might switch
# to another kernel.
RUN = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
num_devices = int(sys.argv[1])
jax.config.update('jax_num_cpu_devices', num_devices)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.config.settings import Model

assert jax.device_count() == num_devices
mesh = jax.make_mesh((num_devices,), ('data',), axis_types=(AxisType.Auto,))

here = platform_of(jax.devices()[0])

def run(B, T, V, **settings):
  model = build(Model(context=T, precision='bfloat16', **settings), V, here)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  def noise(leaf):
    return jnp.asarray(0.1 * rng.normal(size=leaf.shape), 'float32')
  params = jax.tree.map(noise, shapes)
  x_BT = jnp.arange(B * (T + 1)).reshape(B, T + 1) % V
  if B % num_devices == 0:
    x_BT = jax.device_put(x_BT, NamedSharding(mesh, PartitionSpec('data')))

  @jax.jit
  def step(params, x_BT):
    def loss(params):
      log_p = jax.nn.log_softmax(model.apply(params, x_BT[:, :-1]))
      return -jnp.take_along_axis(log_p, x_BT[:, 1:, None], -1).mean()
    return jax.value_and_grad(loss)(params)

  leaves = jax.tree.leaves(step(params, x_BT))
  assert all(jnp.isfinite(leaf).all() for leaf in leaves), settings
  # Alone, a token attends to itself whatever its query and key.
  assert T == 1 or all(jnp.any(leaf) for leaf in leaves), settings
  extend = jax.jit(model.extend)
  cache = model.init_cache(B, T)
  cache, _ = extend(params, cache, x_BT[:, :1], jnp.ones(B, int))
  assert cache.length_B.tolist() == [1] * B
"""
SMALL = """
run(2, 5, 7, width=30, num_heads=3, num_kv_heads=1, depth=2, tied=True)
"""
LARGE = """
run(1, 7, 5, width=28, num_heads=2, depth=1, unroll=1, mlp='swiglu')
run(1, 1, 7, width=30, num_heads=3, depth=2, tied=True, position='alibi')
run(4, 256, 65, width=192, num_heads=3, depth=2, tied=True, remat='dots')
run(2, 100, 260, width=384, num_heads=6, num_kv_heads=2, depth=2, unroll=1)
run(2, 33, 65, width=64, num_heads=4, num_kv_heads=2, depth=3,
    position='learned', value_embeddings=True, norm='layer', mlp='gelu')
"""


def run(calls, num_devices):
  done = subprocess.run(
    [sys.executable, '-c', RUN + calls, str(num_devices)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_runs_on_one_device():
  run(SMALL, 1)


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 2])
def test_sizes_on_devices(num_devices):
  run(SMALL + LARGE, num_devices)
