"""The safety nets of `conftest.py` are really up."""

import warnings

import beartype.roar
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax import constrain
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.model import cache


def _cache() -> cache.Cache:
  return cache.Cache(
    jnp.ones((1, 1, 1, 4, 2)),
    jnp.zeros((1, 4), int),
    jnp.zeros((1, 4), int),
    jnp.zeros(1, int),
  )


def test_two_devices():
  assert jax.device_count() == 2


def test_wrong_shape_is_caught():
  good_BKSH, bad_BKTH = jnp.ones((1, 1, 4, 2)), jnp.ones((1, 1, 1, 3))
  cache.write(good_BKSH, good_BKSH[:, :, :1], jnp.zeros(1, int))
  with pytest.raises(TypeError, match='new_BKTH'):
    cache.write(good_BKSH, bad_BKTH, jnp.zeros(1, int))


def test_dataclass_survives_jax():
  shapes = jax.tree.map(jnp.shape, _cache())
  assert shapes.length_B == (1,)
  jitted = jax.jit(lambda c: c.replace(length_B=c.length_B + 1))
  np.testing.assert_array_equal(jitted(_cache()).length_B, [1])


def test_ranks_are_not_promoted():
  with pytest.raises(ValueError, match='rank_promotion'):
    _ = jnp.ones((2, 3)) + jnp.ones(3)


def test_warnings_are_errors():
  with pytest.raises(UserWarning, match='heard'):
    warnings.warn('heard', stacklevel=1)


def test_wrong_type_is_caught_where_there_are_no_shapes():
  with pytest.raises(beartype.roar.BeartypeCallHintParamViolation):
    constrain.compile_regex(3, Vocabulary.byte())
