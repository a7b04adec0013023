"""Rematerialisation, unrolling, dropout, initialisation, counts."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.protocol import param_count
from craft_jax.model.transformer import _dropout, layer_windows

HERE = platform_of(jax.devices()[0])


def value_and_grad(toy, loss, x_BT, **settings):
  model, params = toy(**settings)
  function = functools.partial(loss, model)
  return jax.jit(jax.value_and_grad(function))(params, x_BT)


def assert_close(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.fixture(scope='module')
def plain(toy, loss, tokens):
  """Loss and gradients of four layers, scanned, nothing recomputed."""
  return value_and_grad(toy, loss, tokens(2, 9), depth=4)


@pytest.mark.parametrize(
  'settings',
  [{'unroll': 2, 'remat': 'block'}, {'remat': 'dots'}, {'unroll': 0}],
  ids=['two-block', 'dots', 'all'],
)
def test_remat_and_unroll_change_nothing(settings, plain, toy, loss, tokens):
  got = value_and_grad(toy, loss, tokens(2, 9), depth=4, **settings)
  assert_close(got, plain)


@pytest.mark.slow
@pytest.mark.parametrize('unroll', [0, 1, 2, 4])
@pytest.mark.parametrize('remat', ['none', 'dots', 'block'])
def test_every_remat_with_every_unroll(remat, unroll, plain, toy, loss, tokens):
  settings = {'remat': remat, 'unroll': unroll, 'depth': 4}
  assert_close(value_and_grad(toy, loss, tokens(2, 9), **settings), plain)


def equations(jaxpr):
  """Every equation of a jaxpr and of those inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from equations(inner)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_remat_is_on(precision, toy, loss, tokens):
  """'dots' computes elementwise work twice, 'block' the products as well."""
  counts = {}
  for remat in ('none', 'dots', 'block'):
    model, params = toy(remat=remat, precision=precision)
    step = jax.grad(functools.partial(loss, model))
    jaxpr = jax.make_jaxpr(step)(params, tokens(2, 9))
    names = [e.primitive.name for e in equations(jaxpr.jaxpr)]
    counts[remat] = (names.count('dot_general'), names.count('exp'))
  (dots, exps), kept, block = (counts[r] for r in ('none', 'dots', 'block'))
  assert kept == (dots, exps + 1)
  # Query, key, value, output, in, out, logits, weighted sum; the last product
  # of a block is not needed to differentiate it.
  assert block == (dots + 7, exps + 1)


@pytest.mark.slow
def test_remat_saves_memory(toy, loss):
  x_BT = jnp.zeros((4, 129), int)
  megabytes = {}
  for remat in ('none', 'dots', 'block'):
    model, params = toy(remat=remat, depth=8, context=128, width=64)
    step = jax.jit(jax.grad(functools.partial(loss, model)))
    memory = step.lower(params, x_BT).compile().memory_analysis()
    megabytes[remat] = memory.temp_size_in_bytes / 2**20
  assert megabytes['block'] < megabytes['dots'] < megabytes['none']
  assert megabytes['block'] < megabytes['none'] / 3


def test_dropout(toy, tokens):
  model, params = toy(dropout=0.4)
  x_BT = tokens(2, 9)
  key = jax.random.key(5)
  apply = jax.jit(model.apply)
  first = apply(params, x_BT, None, key)
  np.testing.assert_array_equal(first, apply(params, x_BT, None, key))
  other = apply(params, x_BT, None, jax.random.key(6))
  assert np.abs(first - other).max() > 0.1
  still, same = toy()
  np.testing.assert_array_equal(
    apply(params, x_BT), jax.jit(still.apply)(same, x_BT)
  )


def test_dropout_keeps_the_mean():
  ones_BTD = jnp.ones((40, 25, 20))
  key = jax.random.key(1)
  first, second = (_dropout(ones_BTD, 0.25, key, salt) for salt in (0, 1))
  np.testing.assert_allclose(np.unique(first), [0, 4 / 3], rtol=1e-6)
  np.testing.assert_allclose(first.mean(), 1.0, atol=0.02)
  # Two places in a block drop independently: 2 x 0.25 x 0.75 differ.
  np.testing.assert_allclose((first != second).mean(), 0.375, atol=0.02)


def test_starts_at_the_embedding(tokens):
  """Zero-initialised blocks add nothing, an untied head gives exactly 0."""
  cfg = Model(context=8, width=12, depth=2, logit_cap=0.0, precision='float32')
  model = build(cfg, 11, HERE)
  params = jax.jit(model.init)(jax.random.key(0))
  apply, x_BT = jax.jit(model.apply), tokens(2, 8)
  assert not apply(params, x_BT).any()
  params['head']['kernel'] = jnp.eye(12, 11)
  x_BTD = np.asarray(params['embed']['embedding'])[x_BT]
  want = x_BTD / np.sqrt((x_BTD**2).mean(-1, keepdims=True) + 1e-6)
  got = apply(params, x_BT)
  np.testing.assert_allclose(got, want[..., :11], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  'tied', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_initial_scales(tied):
  cfg = Model(
    context=64,
    width=128,
    num_heads=2,
    depth=2,
    position='learned',
    tied=tied,
    zero_init=False,
    value_embeddings=True,
    norm='layer',
  )
  params = jax.jit(build(cfg, 260, HERE).init)(jax.random.key(0))
  flat = {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert {leaf.dtype for leaf in flat.values()} == {np.dtype('float32')}
  assert ('head/kernel' in flat) != tied
  for name, leaf in flat.items():
    if name.endswith('scale'):
      assert (leaf == 1).all()
    elif name.endswith('bias') or 'value_embedding' in name:
      assert (leaf == 0).all()
    elif name.endswith('kernel'):
      deviation = 1 / math.sqrt(leaf.shape[-2])
      assert leaf.std() == pytest.approx(deviation, rel=0.05), name
    elif name == 'positions/embedding':
      assert leaf.std() == pytest.approx(0.02, rel=0.05)
    else:
      deviation = 128**-0.5 if tied else 1.0
      assert leaf.std() == pytest.approx(deviation, rel=0.05)
  for name in ('query', 'key', 'value', 'output'):
    kernel = flat[f'blocks/attention/{name}/kernel']
    assert (kernel[0] != kernel[1]).all()
  assert (
    flat['blocks/attention/key/kernel'] != flat['blocks/attention/query/kernel']
  ).all()


def test_cap_bounds_logits(toy, tokens):
  model, params = toy(logit_cap=0.5)
  free, _ = toy(logit_cap=0.0)
  x_BT = tokens(2, 9)
  capped, raw = (jax.jit(m.apply)(params, x_BT) for m in (model, free))
  assert np.abs(capped).max() < 0.5 < np.abs(raw).max()
  np.testing.assert_allclose(capped, 0.5 * np.tanh(raw / 0.5), rtol=1e-5)


def test_one_token(toy, tokens):
  model, params = toy(position='sinusoidal')
  x_BT = tokens(1, 3)
  apply = jax.jit(model.apply)
  want, got = apply(params, x_BT)[:, :1], apply(params, x_BT[:, :1])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_layer_windows():
  def windows(**settings):
    return layer_windows(Model(**settings))

  assert windows(depth=3) == [0, 0, 0]
  assert windows(depth=3, window=8) == [8, 8, 8]
  mixed = windows(depth=5, window=8, local_per_global=2)
  assert mixed == [8, 8, 0, 8, 8]


def shapes(cfg, vocabulary_size):
  return jax.eval_shape(
    build(cfg, vocabulary_size, HERE).init,
    jax.random.key(0),
  )


def test_param_count():
  plain = Model(width=12, depth=3, num_heads=3, context=8)
  block = 12 + 4 * 12 * 12 + 12 + 2 * 12 * 48
  assert param_count(shapes(plain, 11)) == (11 * 12 + 3 * block + 12 + 12 * 11)
  other = Model(
    width=12,
    depth=2,
    num_heads=6,
    num_kv_heads=2,
    context=8,
    mlp='swiglu',
    norm='layer',
    position='learned',
    tied=True,
    value_embeddings=True,
  )
  # Keys and values are 4 wide; a gated MLP is 8/3 x 12 = 32 wide.
  block = 24 + 2 * 12 * 12 + 2 * 12 * 4 + 11 * 4 + 24 + 3 * 12 * 32
  assert param_count(shapes(other, 11)) == 11 * 12 + 8 * 12 + 2 * block + 24


@pytest.mark.parametrize(
  'settings',
  [{}, {'num_kv_heads': 1, 'mlp': 'swiglu', 'tied': True, 'position': 'alibi'}],
  ids=['plain', 'mqa-swiglu-tied'],
)
def test_flops(settings, loss):
  """XLA counts elementwise work too: at this size up to 8% on top."""
  cfg = Model(
    context=64, width=128, num_heads=2, depth=2, precision='float32', **settings
  )
  model = build(cfg, 97, HERE)
  step = jax.jit(jax.value_and_grad(functools.partial(loss, model)))
  x_BT = jax.ShapeDtypeStruct((2, 65), 'int32')
  cost = step.lower(shapes(cfg, 97), x_BT).cost_analysis()
  if cost is None and jax.default_backend() != 'cpu':
    pytest.skip('no count of operations before compilation on this device')
  ratio = cost['flops'] / (model.flops_per_token(64) * 2 * 64)
  assert 1.0 < ratio < 1.08


def test_flops_by_hand():
  cfg = Model(
    context=64, width=12, num_heads=3, depth=2, window=16, local_per_global=1
  )
  products = 2 * (4 * 12 * 12 + 2 * 12 * 48) + 12 * 7
  flops = build(cfg, 7, HERE).flops_per_token(cfg.context)
  assert flops == 6 * products + 12 * 12 * (16 + 64)


def test_models_are_equal_where_their_settings_are():
  cfg = Model(width=16, num_heads=2, precision='float32')
  model, again, changed = (build(cfg, 11, HERE) for _ in range(3))
  assert model == again and hash(model) == hash(again)
  wider = dataclasses.replace(cfg, width=32)
  rounded = dataclasses.replace(cfg, precision='bfloat16')
  for other in (
    build(wider, 11, HERE), build(rounded, 11, HERE), build(cfg, 12, HERE),
    build(cfg, 11, HERE, 'int8'),
  ):  # fmt: skip
    assert model != other
  changed.apply = None
  assert model != changed
