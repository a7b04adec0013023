"""The Grain path gives the device's batches, from any index, in parts."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Config, Data
from craft_jax.data import batch, grain_batches
from craft_jax.errors import UserError

TOKENS = np.random.default_rng(1).integers(0, 260, 400).astype(np.uint16)


@pytest.mark.parametrize('order', ['crops', 'windows'])
def test_stream_equals_device(order):
  plan = {'batch_size': 8, 'context': 7, 'order': order, 'seed': 3}
  at = jax.jit(functools.partial(batch.windows_at, **plan))
  tokens = jnp.asarray(TOKENS)
  for start in (0, 1, 123, 2**29 - 6):
    whole = grain_batches.WindowStream(
      grain_batches.WindowSource(TOKENS, **plan), start
    )
    halves = [
      grain_batches.WindowStream(
        grain_batches.WindowSource(TOKENS, rows=rows, **plan), start, prefetch=2
      )
      for rows in (slice(0, 4), slice(4, 8))
    ]
    for i in range(start, start + 5):
      expected = np.asarray(at(tokens, np.uint32(i)))
      assert whole.data_index == i
      assert np.array_equal(next(whole), expected)
      assert np.array_equal(np.concatenate([*map(next, halves)]), expected)
    for one in (whole, *halves):
      one.close()


def test_stream_and_device_give_equal_training_batches():
  plan = {'batch_size': 4, 'context': 20, 'order': 'crops', 'seed': 0}
  recipe = batch.Recipe(
    256, 256, 259, documents=True, noise_rate=0.2, span_rate=0.2
  )
  key = jax.random.key(9)
  at = jax.jit(functools.partial(batch.batch_at, recipe=recipe, **plan))
  make = jax.jit(
    lambda window, i: batch.to_batch(window, jax.random.fold_in(key, i), recipe)
  )
  source = grain_batches.WindowSource(TOKENS, **plan)
  for i, window in zip(
    range(5, 9), grain_batches.WindowStream(source, 5), strict=False
  ):
    expected = at(jnp.asarray(TOKENS), key, np.uint32(i))
    got = make(window, np.uint32(i))
    for a, b in zip(got, expected, strict=True):
      assert np.array_equal(a, b)


def test_wait_is_measured():
  class Slow(grain_batches.WindowSource):
    def __getitem__(self, data_index):
      time.sleep(0.05)
      return super().__getitem__(data_index)

  plan = {'batch_size': 2, 'context': 7, 'order': 'crops', 'seed': 0}
  slow = grain_batches.WindowStream(Slow(TOKENS, **plan), prefetch=1)
  next(slow)
  assert slow.wait_seconds >= 0.04
  slow.wait_seconds = 0.0
  time.sleep(0.3)  # it reads ahead meanwhile
  next(slow)
  assert slow.wait_seconds < 0.04
  slow.close()


def test_placement():
  def placed(tokens=TOKENS, **settings):
    return grain_batches.placement(Config(data=Data(**settings)), tokens)

  assert placed() == 'device'
  assert placed(device_megabytes=0) == 'grain'
  assert placed(placement='grain') == 'grain'
  assert placed(placement='device', device_megabytes=0) == 'device'
  limit = np.broadcast_to(np.uint8(0), (10**6,))
  assert placed(limit, device_megabytes=1) == 'device'
  above = np.broadcast_to(np.uint8(0), (10**6 + 1,))
  assert placed(above, device_megabytes=1) == 'grain'
  huge = np.broadcast_to(np.uint8(0), (2**31,))
  assert placed(huge, device_megabytes=10**6) == 'grain'
  with pytest.raises(UserError, match=r'data\.placement=grain'):
    placed(huge, placement='device')
