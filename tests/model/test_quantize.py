"""Weights and caches of 8 bits: how far off, how small, and still one model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request
from craft_jax.inference.sampling.beam_search import beam_search
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model import precision
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.quantize import Quantized, quantized
from craft_jax.model.quantize import quantize as quantize_eagerly
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.model.transformer import Decoder

HERE = platform_of(jax.devices()[0])

B, T = 3, 12
quantize = jax.jit(quantize_eagerly)
CHARS = Vocabulary('char', 'e taoin\nshr')


def with_cache(model, cache):
  return Decoder(model.cfg, model.vocabulary_size, model.policy, cache)


def is_quantized(x):
  return isinstance(x, Quantized)


def num_bytes(tree):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def read(model, params, x_BT, pieces):
  """Logits of a text that is cut into pieces of these lengths."""
  extend = jax.jit(functools.partial(model.extend, params))
  cache, start, found = model.init_cache(*x_BT.shape), 0, []
  for length in pieces:
    piece_BT = x_BT[:, start : start + length]
    length_B = jnp.full(len(x_BT), length)
    cache, logits_BTV = extend(cache, piece_BT, length_B)
    found.append(logits_BTV)
    start += length
  return jnp.concatenate(found, axis=1)


ONE_BY_ONE, RAGGED, WHOLE = (1,) * T, (5, 1, 5, 1), (T,)


def near(got, want, share):
  """Whether the error is that share of what differs between positions."""
  spread = np.std(np.asarray(want))
  return np.abs(np.asarray(got) - np.asarray(want)).mean() < share * spread


# --- numbers ---


@pytest.mark.parametrize('axis', [-1, -2])
def test_error_is_half_a_scale_at_most(axis):
  x = np.random.default_rng(0).normal(size=(3, 16, 8)) * 10.0 ** np.arange(8)
  x[1] = 0
  x = x.astype(np.float32)
  got = quantized(jnp.asarray(x), axis)
  assert got.values.dtype == jnp.int8 and got.values.shape == x.shape
  assert got.scale.dtype == jnp.float32
  scale = np.expand_dims(got.scale, axis)
  np.testing.assert_allclose(
    scale, np.abs(x).max(axis, keepdims=True) / 127, rtol=1e-6
  )
  assert (np.abs(got.values * scale - x) <= scale * 0.5001).all()
  assert np.abs(got.values).max() == 127
  # Nothing is divided by zero.
  assert not got.values[1].any() and not got.scale[1].any()


def test_only_matrices_and_tables_are_rounded(toy):
  model, params = toy(ngrams=3, ngram_rows=50, mlp='swiglu')
  got = quantize(params)
  paths = [
    (path, leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      got, is_leaf=is_quantized
    )
  ]
  for path, leaf in paths:
    large = path[-1].key == 'kernel' or path[0].key == 'ngrams'
    assert is_quantized(leaf) == large, path
  assert sum(is_quantized(leaf) for _, leaf in paths) == 9
  # A channel has the same scale in a stack of layers and alone.
  apart = quantize(decoding_params(model, params))
  jax.tree.map(
    np.testing.assert_array_equal, decoding_params(model, got), apart
  )
  assert jax.tree.structure(quantize(got)) == jax.tree.structure(got)


def test_bytes_are_a_quarter(toy):
  model, params = toy(width=64, num_heads=2, ngrams=2, ngram_rows=500)
  large = [
    leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if path[-1].key == 'kernel' or path[0].key == 'ngrams'
  ]  # fmt: skip
  saved = num_bytes(params) - num_bytes(quantize(params))
  assert 0.7 * num_bytes(large) < saved < 0.75 * num_bytes(large)
  caches = {
    name: num_bytes(with_cache(model, name).init_cache(2, T).layers)
    for name in ('float32', 'bfloat16', 'int8')
  }
  # One scale of 4 bytes for 32 numbers.
  assert caches['bfloat16'] / caches['float32'] == 1 / 2
  assert caches['int8'] / caches['float32'] == (32 + 4) / (4 * 32)


# --- the model ---


@pytest.mark.parametrize('settings', [
  {},
  {'num_kv_heads': 2, 'ngrams': 3, 'mlp': 'swiglu', 'position': 'alibi'},
  {'tied': True, 'precision': 'bfloat16', 'value_embeddings': True},
], ids=['plain', 'grouped', 'tied'])  # fmt: skip
def test_logits_are_near_those_of_float_weights(settings, toy, tokens):
  model, params = toy(**settings)
  x_BT = tokens(B, T)
  apply = jax.jit(model.apply)
  want, got = apply(params, x_BT), apply(quantize(params), x_BT)
  assert near(got, want, 0.03)
  assert not near(got, want, 1e-4)
  ready = decoding_params(model, quantize(params))
  assert near(read(model, ready, x_BT, ONE_BY_ONE), want, 0.03)


def test_elsewhere_activations_are_not_rounded():
  """On an accelerator only the kernel is in int8."""
  policy = precision.Policy('float32', precision.PLATFORMS['gpu'])
  x_BTD = jax.random.normal(jax.random.key(0), (2, 3, 8))
  kernel = quantized(jax.random.normal(jax.random.key(1), (8, 5)), -2)
  got = precision.einsum('BTD,DF->BTF', x_BTD, kernel, policy)
  want = x_BTD @ (kernel.values * kernel.scale[None])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('cache', 'weights'), [
  ('bfloat16', 'auto'), ('int8', 'auto'), ('float32', 'int8'), ('int8', 'int8'),
])  # fmt: skip
def test_any_cut_reads_the_same(cache, weights, toy, tokens):
  """In a piece its own keys are read as they are kept.

  What sums in another order may be rounded to the whole number beside, once in
  a while: hence a share of what differs, not a last place.
  """
  model, params = toy(num_kv_heads=2, position='alibi')
  x_BT = tokens(B, T)
  want = jax.jit(model.apply)(params, x_BT)
  used = quantize(params) if weights == 'int8' else params
  model = with_cache(model, cache)
  whole, *cut = (
    read(model, used, x_BT, p) for p in (WHOLE, ONE_BY_ONE, RAGGED)
  )
  assert near(whole, want, 0.03)
  for got in cut:
    assert near(got, whole, 0.005)
  assert not near(whole, want, 1e-4)


def test_a_mesh_reads_rounded_weights(toy, tokens):
  """As an evaluation does: rows are spread, what is rounded is not."""
  model, params = toy(ngrams=2)
  mesh, x_BT, used = mesh_lib.data_mesh(4), tokens(4, T), quantize(params)
  assert mesh.size > 1
  want = jax.jit(model.apply)(used, x_BT)
  with jax.set_mesh(mesh):
    spread_BT = jax.device_put(x_BT, mesh_lib.batch_sharding(mesh))
    used = jax.device_put(used, mesh_lib.replicated(mesh))
    got = jax.jit(model.apply)(used, spread_BT)
  assert near(got, want, 0.005)


def test_a_row_that_rests_keeps_its_scales(toy, tokens):
  """What falls off the end, or past a length, is not written."""
  model, params = toy()
  model, x_BT = with_cache(model, 'int8'), tokens(2, T)
  extend = jax.jit(functools.partial(model.extend, params))
  full, _ = extend(model.init_cache(2, T), x_BT, jnp.array([T, T]))
  after, _ = extend(full, x_BT[:, :4], jnp.array([0, 0]))
  jax.tree.map(np.testing.assert_array_equal, after.layers, full.layers)
  assert full.layers[0][0].scale.min() > 0


# --- those who use it ---


@pytest.fixture(scope='module')
def small():
  cfg = Model(
    context=32, width=16, depth=2, num_heads=2, precision='float32',
    zero_init=False,
  )  # fmt: skip
  model = build(cfg, CHARS.size, HERE, 'int8')
  params = jax.jit(model.init)(jax.random.key(0))
  params['blocks'] = jax.tree.map(lambda leaf: leaf * 3, params['blocks'])
  return model, quantize(params)


def test_the_engine_writes_what_generate_writes(small):
  settings = SampleSettings(temperature=1, end=False)
  prompts = [CHARS.encode(text) for text in ('the ', 'a', 'o reason in this')]
  written = ['', '', '']
  for pieces in generate(*small, CHARS, prompts, settings, 3, 50):
    for piece in pieces:
      written[piece.row] += piece.text
  assert all(len(text) == 50 for text in written)
  engine = Engine(*small, CHARS, slots=4, steps=8, chunk=16, reading=40)
  found = engine.run([
    Request(prompt, 50, settings, seed=3, first_sample=row, slide=True)
    for row, prompt in enumerate(prompts)
  ])  # fmt: skip
  assert [samples[0].text for samples in found] == written


def test_beams_move_with_their_scales(small):
  prompt = CHARS.encode('tin ')
  wide, *_ = beam_search(*small, CHARS, prompt, 8, 6)
  alone, *_ = beam_search(*small, CHARS, prompt, 1, 6)
  assert wide.score >= alone.score
