"""Device windows, targets, segments and augmentation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Config, Data, Model
from craft_jax.data import batch
from craft_jax.data.text.vocabulary import Vocabulary

BYTE = Vocabulary.byte()
PLAIN = batch.Recipe(num_text_tokens=256, bos=256, unk=259)
to_batch = jax.jit(batch.to_batch, static_argnums=2)
PLAN = {'batch_size': 6, 'context': 9, 'order': 'crops', 'seed': 5}


def tokens_of(n, high=256):
  return np.random.default_rng(0).integers(0, high, n).astype(np.uint16)


@pytest.mark.parametrize('order', ['crops', 'windows'])
def test_device_equals_numpy(order):
  tokens = tokens_of(1000)
  plan = PLAN | {'order': order}
  at = jax.jit(functools.partial(batch.windows_at, **plan))
  on_device = jnp.asarray(tokens)
  for i in (0, 1, 17, 10_000, 2**31, 2**32 // 6):
    expected = batch.numpy_windows_at(tokens, i, **plan)
    got = at(on_device, np.uint32(i))
    assert got.dtype == expected.dtype == np.int32
    assert np.array_equal(got, expected)


def test_windows_are_text():
  tokens = tokens_of(200)
  text = tokens.tobytes()
  for row in batch.numpy_windows_at(tokens, 3, **PLAN):
    assert row.shape == (10,)
    assert row.astype(np.uint16).tobytes() in text


def test_one_epoch_of_windows_reads_each_target_once():
  tokens = np.arange(1 + 9 * 12, dtype=np.uint16)  # 12 windows, 2 batches
  plan = PLAN | {'order': 'windows'}
  rows = [batch.numpy_windows_at(tokens, i, **plan) for i in (0, 1)]
  targets = np.concatenate(rows)[:, 1:]
  assert np.array_equal(np.sort(targets.ravel()), tokens[1:])


def test_a_corpus_of_one_window():
  tokens = tokens_of(10)
  for order in ('crops', 'windows'):
    plan = PLAN | {'order': order}
    got = batch.numpy_windows_at(tokens, 4, **plan)
    assert (got == tokens).all()


def test_batch_at_is_a_function_of_the_index():
  tokens = jnp.asarray(tokens_of(500))
  recipe = dataclasses.replace(PLAIN, noise_rate=0.3)
  at = jax.jit(functools.partial(batch.batch_at, recipe=recipe, **PLAN))
  key = jax.random.key(1)
  first, again, other = (
    at(tokens, key, 7),
    at(tokens, key, 7),
    at(tokens, key, 8),
  )
  for a, b in zip(first, again, strict=True):
    assert np.array_equal(a, b)
  assert not np.array_equal(first.x_BT, other.x_BT)
  window = batch.numpy_windows_at(np.asarray(tokens), 7, **PLAN)
  assert np.array_equal(first.y_BT, window[:, 1:])
  # The streamed half with the same key is the same batch.
  folded = jax.random.fold_in(key, 7)
  streamed = to_batch(jnp.asarray(window), folded, recipe)
  for a, b in zip(first, streamed, strict=True):
    assert np.array_equal(a, b)


def test_shift_weights_and_segments():
  window = jnp.array([[5, 256, 6, 7, 256, 8], [256, 1, 2, 3, 4, 5]])
  plain = to_batch(window, jax.random.key(0), PLAIN)
  assert np.array_equal(plain.x_BT, window[:, :-1])
  assert np.array_equal(plain.y_BT, window[:, 1:])
  assert plain.weight_BT.dtype == jnp.float32
  assert (plain.weight_BT == 1).all()  # BOS is a target in training
  assert (plain.segment_BT == 0).all()
  recipe = dataclasses.replace(PLAIN, documents=True)
  segment = to_batch(window, jax.random.key(0), recipe).segment_BT
  assert segment.dtype == jnp.int32
  assert segment.tolist() == [[0, 1, 1, 1, 2], [1, 1, 1, 1, 1]]


def changed_share(**rates):
  window = jnp.asarray(tokens_of(40 * 2001).reshape(40, 2001), jnp.int32)
  recipe = dataclasses.replace(PLAIN, **rates)
  out = to_batch(window, jax.random.key(3), recipe)
  assert np.array_equal(out.y_BT, window[:, 1:])
  return np.asarray(window[:, :-1]), np.asarray(out.x_BT)


def test_noise_rate():
  before, after = changed_share(noise_rate=0.2)
  share = (before != after).mean() * 256 / 255
  assert share == pytest.approx(0.2, abs=0.01)
  drawn = after[before != after]
  assert 0 <= drawn.min() < 3 and 253 <= drawn.max() < 256


@pytest.mark.parametrize('length', [1, 5, 64])
def test_span_rate_and_length(length):
  before, after = changed_share(span_rate=0.3, span_length=length)
  hidden = after == 259
  assert np.array_equal(after[~hidden], before[~hidden])
  assert hidden.mean() == pytest.approx(0.3, abs=0.03)
  # The left edge is hidden as often as the middle.
  assert hidden[:, 0].mean() == pytest.approx(0.3, abs=0.25)
  # A run inside the window is no shorter than a span.
  row = np.concatenate([[0], hidden[0].astype(int), [0]])
  edges = np.flatnonzero(np.diff(row))
  runs = [
    b - a
    for a, b in zip(edges[::2], edges[1::2], strict=True)
    if a > 0 and b < 2000
  ]
  assert runs and min(runs) >= length


def test_case_changes_letters_only():
  vocabulary = Vocabulary.from_text('aAbBzé1 ßΔδ')
  text = 'aAbBz1 ßΔδé' * 2000
  ids = vocabulary.encode(text).astype(np.int32)[None]
  recipe = batch.recipe_of(Config(data=Data(case_rate=1.0)), vocabulary)
  out = to_batch(jnp.asarray(ids), jax.random.key(0), recipe)
  after = vocabulary.decode(np.asarray(out.x_BT[0]))
  assert after != text[:-1]
  assert after.casefold() == text[:-1].casefold()
  swapped = np.array([a != b for a, b in zip(after, text, strict=False)])
  letters = np.array([c in 'aAbBΔδ' for c in text[:-1]])
  assert not swapped[~letters].any()
  assert swapped[letters].mean() == pytest.approx(0.5, abs=0.02)


def test_swapped_case_is_its_own_inverse():
  chars = ''.join(map(chr, [*range(32, 0x250), *range(0x370, 0x400), 0x1E9E]))
  for vocabulary in (BYTE, Vocabulary.from_text(chars)):
    table = np.array(batch.swapped_case(vocabulary))
    assert len(table) == vocabulary.size
    assert np.array_equal(table[table], np.arange(vocabulary.size))
  table = batch.swapped_case(BYTE)
  assert table[ord('a')] == ord('A') and table[ord('Z')] == ord('z')
  assert table[0xE9] == 0xE9 and table[256] == 256


def test_augmentation_spares_separators():
  window = jnp.asarray(np.tile([65, 256, 66, 67, 259], (30, 40)), jnp.int32)
  recipe = dataclasses.replace(
    PLAIN, documents=True, noise_rate=1.0, span_rate=0.5, span_length=3
  )
  out = to_batch(window, jax.random.key(0), recipe)
  x = np.asarray(window[:, :-1])
  assert np.array_equal(np.asarray(out.x_BT) == 256, x == 256)
  assert (np.asarray(out.x_BT)[x == 259] == 259).all()
  assert np.array_equal(out.segment_BT, np.cumsum(x == 256, axis=1))


def test_recipe_of_config():
  recipe = batch.recipe_of(
    Config(
      data=Data(noise_rate=0.1, span_rate=0.2, span_length=3),
      model=Model(documents=True),
    ),
    BYTE,
  )
  assert recipe == batch.Recipe(256, 256, 259, True, 0.0, 0.1, 0.2, 3)
  assert recipe.augments and hash(recipe)
  assert not batch.recipe_of(Config(), BYTE).augments
