"""Models of a wanted size with the proportions of another."""

import jax
import pytest

from craft_jax.model import build, param_count
from craft_jax.plan.resize import resized
from craft_jax.settings import Model

CFG = Model(width=64, depth=2, num_heads=4, context=32)


def count(cfg):
  return param_count(jax.eval_shape(build(cfg, 260).init, jax.random.key(0)))


@pytest.mark.parametrize('factor', [0.3, 0.9, 1.0, 1.15, 5.0])
def test_the_nearest_size(factor):
  wanted = factor * count(CFG)
  found = resized(CFG, 260, wanted)
  assert found.width // found.num_heads == 16
  assert found.depth == max(round(found.num_heads / 2), 1)
  assert 0.6 < count(found) / wanted < 1.7
  if factor == 1.0:
    assert found == CFG


def test_shared_heads_and_the_mlp_keep_their_proportion():
  cfg = Model(
    width=64, depth=2, num_heads=4, num_kv_heads=2, mlp_width=128, context=32
  )
  found = resized(cfg, 260, 3 * count(cfg))
  assert found.num_heads % 2 == 0 and found.num_kv_heads == 2
  assert found.mlp_width == 2 * found.width
