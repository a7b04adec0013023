"""Models of a wanted size with the proportions of another."""

import dataclasses

import jax
import pytest

from craft_jax.config.settings import Model
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.protocol import param_count
from craft_jax.train.plan import resize
from craft_jax.train.plan.resize import resized

HERE = platform_of(jax.devices()[0])

CFG = Model(width=64, depth=2, num_heads=4, context=32)


def count(cfg):
  return param_count(
    jax.eval_shape(build(cfg, 260, HERE).init, jax.random.key(0))
  )


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


def test_a_budget_far_beyond_the_model_is_told_at_once(monkeypatch):
  """By doubling up to 128 heads: to count up took minutes."""
  tried = []

  def counted(*args):
    tried.append(args)
    return build(*args)

  monkeypatch.setattr(resize, 'build', counted)
  assert resized(CFG, 260, 1e15) is None
  assert len(tried) == 8


@pytest.mark.parametrize('kv_heads', [None, 3])
def test_halving_finds_what_counting_up_does(kv_heads):
  cfg = dataclasses.replace(CFG, num_heads=6, width=96, num_kv_heads=kv_heads)
  step = kv_heads or 1
  sizes = []
  for heads in range(step, 16, step):
    wide = dataclasses.replace(
      cfg,
      num_heads=heads,
      width=16 * heads,
      depth=max(round(heads / 3), 1),
    )
    sizes.append((count(dataclasses.replace(wide, unroll=1)), wide))
  for wanted in (1, sizes[1][0], 0.6 * sizes[2][0] + 0.4 * sizes[3][0], 8e5):
    nearest = min(sizes, key=lambda s: max(s[0] / wanted, wanted / s[0]))
    assert resized(cfg, 260, wanted) == nearest[1], wanted
