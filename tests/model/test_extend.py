"""`extend`, however the text is cut, equals `apply` at every position."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

B, T = 3, 12
HEADS = {'mha': {}, 'gqa': {'num_kv_heads': 2}, 'mqa': {'num_kv_heads': 1}}
REACHES = {
  'full': {},
  'window': {'window': 4},
  'local-global': {'window': 4, 'local_per_global': 1},
}
POSITIONS = {
  'rope': {},
  'partial': {'rope_fraction': 0.5},
  'alibi': {'position': 'alibi'},
  'learned': {'position': 'learned'},
  'sinusoidal': {'position': 'sinusoidal'},
  'none': {'position': 'none'},
}
# The quick part has each position once, over six pairs of the other two.
QUICK = [
  (list(HEADS)[p % 3], list(REACHES)[(p + p // 3) % 3], position)
  for p, position in enumerate(POSITIONS)
]


def read(extend, cache, x_BT, cuts, segment_BT=None):
  """Logits `[B, T, V]` of text read in pieces.

  Args:
    extend: `model.extend` with the params bound, jitted.
    cache: an empty cache.
    x_BT: the text.
    cuts: per piece, `(width of the array, tokens per row)`; rows are padded
      on the right with the wrong token.
    segment_BT: document of each token.
  """
  rows, start_B = [[] for _ in x_BT], np.zeros(len(x_BT), int)
  for width, length_B in cuts:
    piece_BT, piece_segment_BT = np.full((len(x_BT), width), 9), None
    for row, length in enumerate(length_B):
      span = slice(start_B[row], start_B[row] + length)
      piece_BT[row, :length] = x_BT[row, span]
    if segment_BT is not None:
      at_BT = np.minimum(start_B[:, None] + np.arange(width)[None], T - 1)
      piece_segment_BT = np.take_along_axis(np.asarray(segment_BT), at_BT, 1)
    cache, logits_BTV = extend(
      cache, piece_BT, np.asarray(length_B), piece_segment_BT
    )
    for row, length in enumerate(length_B):
      rows[row].append(np.asarray(logits_BTV[row, :length]))
    start_B += length_B
  np.testing.assert_array_equal(cache.length_B, start_B)
  return np.stack([np.concatenate(row) for row in rows])


def bound(model, params):
  return jax.jit(functools.partial(model.extend, params))


# A prompt per row, padded to the longest (which is the whole text), then the
# rest one token at a time; rows that are done read nothing.
PROMPTS = [(T, (12, 3, 7))] + [
  (1, (0, int(3 + i < T), int(7 + i < T))) for i in range(9)
]
# Pieces of different lengths per row, one row resting at times and the last
# piece padded past the end of the cache.
RAGGED = [(5, (5, 1, 3)), (5, (0, 4, 5)), (5, (5, 5, 2)), (5, (2, 2, 2))]


def check(toy, x_BT, heads, reach, position, all_cuts):
  settings = HEADS[heads] | REACHES[reach] | POSITIONS[position]
  model, params = toy(**settings, value_embeddings=heads == 'gqa', ngrams=3)
  want = jax.jit(model.apply)(params, x_BT)
  extend = bound(model, params)
  for cuts in all_cuts:
    got = read(extend, model.init_cache(B, T), x_BT, cuts)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('heads', 'reach', 'position'), QUICK)
def test_prompt_then_tokens(heads, reach, position, toy, tokens):
  x_BT = np.asarray(tokens(B, T))
  check(toy, x_BT, heads, reach, position, [PROMPTS])


@pytest.mark.slow
@pytest.mark.parametrize('heads', HEADS)
@pytest.mark.parametrize('reach', REACHES)
@pytest.mark.parametrize('position', POSITIONS)
def test_any_cut(heads, reach, position, toy, tokens):
  x_BT = np.asarray(tokens(B, T))
  check(toy, x_BT, heads, reach, position, [PROMPTS, RAGGED])


def test_bfloat16(toy, tokens):
  """The operands are equal up to a few last places of float32.

  A difference in float32 of one part in a million can still push an operand
  over a rounding border of bfloat16 (one part in 256), hence a few 1e-2
  where float32 has 1e-5; a wrong position or mask moves logits by about 1.
  """
  model, params = toy(num_kv_heads=2, window=5, precision='bfloat16')
  x_BT = np.asarray(tokens(B, T))
  want = np.asarray(jax.jit(model.apply)(params, x_BT))
  got = read(bound(model, params), model.init_cache(B, T), x_BT, PROMPTS)
  np.testing.assert_allclose(got, want, atol=0.1)
  assert np.abs(got - want).mean() < 5e-3
  assert np.abs(want[:, 1:] - want[:, :-1]).mean() > 0.5


def test_documents(toy, tokens):
  model, params = toy(documents=True, window=6, ngrams=4, ngram_rows=50)
  x_BT = np.asarray(tokens(B, T))
  segment_BT = np.cumsum(np.asarray(tokens(B, T)) < 3, axis=1)
  assert segment_BT[:, -1].min() > 0
  want = jax.jit(model.apply)(params, x_BT, segment_BT)
  extend = bound(model, params)
  got = read(extend, model.init_cache(B, T), x_BT, RAGGED, segment_BT)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  whole = jax.jit(model.apply)(params, x_BT)
  assert np.abs(whole - want).max() > 0.1


def test_cache_may_be_longer_or_reused(toy, tokens):
  """What lies past `length_B`, left by an earlier row, has no effect."""
  model, params = toy(position='alibi', num_kv_heads=2)
  x_BT = np.asarray(tokens(B, T))
  extend = bound(model, params)
  empty = model.init_cache(B, T + 5)
  used = empty.replace(layers=tuple((k + 7, v - 9) for k, v in empty.layers))
  got = [read(extend, cache, x_BT, RAGGED) for cache in (empty, used)]
  np.testing.assert_array_equal(*got)


def test_padding_past_the_end_is_dropped(toy, tokens):
  """A padded piece that sticks out of the cache leaves its entries alone."""
  model, params = toy()
  x_BT = tokens(1, T)
  extend = bound(model, params)
  cache, _ = extend(model.init_cache(1, T), x_BT, jnp.array([T - 1]))
  after, _ = extend(cache, x_BT[:, :5], jnp.array([1]))
  for (old, _), (new, _) in zip(cache.layers, after.layers, strict=True):
    np.testing.assert_array_equal(new[:, :, : T - 1], old[:, :, : T - 1])
    assert np.abs(new[:, :, T - 1] - old[:, :, T - 1]).max()


def test_rows_do_not_meet(toy, tokens):
  """A row's logits are the same bits whatever stands in the others."""
  model, params = toy(num_kv_heads=1)
  x_BT = np.asarray(tokens(B, T))
  other_BT = x_BT.copy()
  other_BT[1:] = (x_BT[1:] + 1) % 11
  extend = bound(model, params)
  first, second = (
    read(extend, model.init_cache(B, T), x, RAGGED)[0] for x in (x_BT, other_BT)
  )
  np.testing.assert_array_equal(first, second)
