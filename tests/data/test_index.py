"""Index arithmetic: bijections, epochs, NumPy equal to jax.numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.data import index
from craft_jax.errors import UserError

KEYS = st.integers(0, 2**32 - 1)


def permuted(i, n, key, xp=np):
  i = xp.asarray(i, xp.uint32)
  return index.permute(i, n, xp.full(i.shape, key, xp.uint32), xp)


@given(n=st.integers(1, 3000), key=KEYS)
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(n, key):
  out = permuted(np.arange(n), n, key)
  assert np.array_equal(np.sort(out), np.arange(n))


@given(
  n=st.integers(2**16, 2**32 - 1) | st.sampled_from([2**31, 2**32 - 1]),
  key=KEYS,
  seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_permute_of_large_ranges_has_no_collision(n, key, seed):
  some = np.random.default_rng(seed).integers(0, n, 500, dtype=np.uint32)
  some = np.unique(np.concatenate([some, [0, n - 1]]).astype(np.uint32))
  out = permuted(some, n, key)
  assert out.dtype == np.uint32
  assert out.max() < n
  assert len(np.unique(out)) == len(some)


def test_permute_of_all_of_a_million():
  n = 1_000_003
  seen = np.zeros(n, bool)
  seen[permuted(np.arange(n), n, 7)] = True
  assert seen.all()


def test_permute_mixes():
  n = 100_000
  i = np.arange(n)
  out = permuted(i, n, 1).astype(np.int64)
  assert abs(np.corrcoef(i, out)[0, 1]) < 0.02
  assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.02
  # Neighbours stay neighbours about as often as by chance (2 expected).
  assert (np.abs(np.diff(out)) == 1).sum() < 15
  other = permuted(i, n, 2).astype(np.int64)
  assert (out == other).sum() < 15
  # Each tenth of the inputs spreads evenly over the tenths of the outputs.
  cells = np.histogram2d(i, out, bins=10)[0]
  assert abs(cells - n / 100).max() < 6 * np.sqrt(n / 100)


def test_small_permutations_are_all_reached():
  seen = {tuple(permuted(np.arange(3), 3, key)) for key in range(200)}
  assert len(seen) == 6


@pytest.mark.parametrize('n', [1, 2, 1000, 2**31 + 5, 2**32 - 1])
def test_numpy_equals_jax(n):
  i = np.random.default_rng(n).integers(0, n, 64, dtype=np.uint32)
  jitted = jax.jit(lambda i: permuted(i, n, 123, jnp))
  assert np.array_equal(permuted(i, n, 123), jitted(i))


@pytest.mark.parametrize('order', ['crops', 'windows'])
@pytest.mark.parametrize('num_tokens', [6, 21, 22, 100, 2**32 - 1])
def test_starts_are_in_bounds_and_equal(order, num_tokens):
  sample = np.array([0, 1, 5, 2**31, 2**32 - 1], np.uint32)
  args = (num_tokens, 5, order, 3)
  start = index.start_of(sample, *args, np)
  assert start.dtype == np.uint32
  assert (start.astype(np.int64) + 5 < num_tokens).all()
  if order == 'windows':
    assert (start % 5 == 0).all()
  jitted = jax.jit(lambda s: index.start_of(s, *args, jnp))
  assert np.array_equal(start, jitted(sample))


@pytest.mark.parametrize('order', ['crops', 'windows'])
def test_an_epoch_visits_each_start_once_and_epochs_differ(order):
  n = index.num_starts(1003, 7, order)
  assert n == (996 if order == 'crops' else 143)
  sample = np.arange(3 * n, dtype=np.uint32)
  epochs = index.start_of(sample, 1003, 7, order, 0, np).reshape(3, n)
  stride = 1 if order == 'crops' else 7
  for epoch in epochs:
    assert np.array_equal(np.sort(epoch), stride * np.arange(n))
  assert not np.array_equal(epochs[0], epochs[1])
  assert not np.array_equal(epochs[1], epochs[2])


def test_seeds_differ_also_beyond_32_bits():
  sample = np.arange(50, dtype=np.uint32)
  starts = [
    tuple(index.start_of(sample, 10_000, 7, 'crops', seed, np))
    for seed in (0, 1, 2**32 - 1, 2**33, 2**64 + 5)
  ]
  assert len(set(starts)) == 5


def test_samples_wrap_in_32_bits():
  first = index.samples_of(2**32 - 1, 8, slice(2, 5), np)
  assert first.dtype == np.uint32
  assert list(first) == [(2**32 - 8 + row) % 2**32 for row in (2, 3, 4)]
  assert np.array_equal(
    first, index.samples_of(np.uint32(2**32 - 1), 8, slice(2, 5), jnp)
  )


def test_check_samples():
  index.check_samples(2**20, 2**11, 100, 10)
  with pytest.raises(UserError, match=r'train\.steps=1048576 x train\.batch'):
    index.check_samples(2**20, 2**12, 100, 10)
  with pytest.raises(UserError, match='at most'):
    index.check_samples(1, 1, 2**32, 10)
  with pytest.raises(UserError, match=r'model\.context=10'):
    index.check_samples(1, 1, 10, 10)
  index.check_samples(1, 1, 11, 10)
