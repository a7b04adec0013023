import jax
import numpy as np
import pytest

from craft_jax.config.settings import Optim
from craft_jax.train.optim.schedules import build_schedule

SHAPES = ('constant', 'linear', 'cosine', 'rsqrt', 'wsd')


def _rates(steps, peak=2.0, **settings):
  schedule = build_schedule(Optim(**settings), steps, peak)
  return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(steps)))


@pytest.mark.parametrize('shape', SHAPES)
def test_warm_up_is_linear_and_never_zero(shape):
  rates = _rates(20, schedule=shape, warmup_steps=4)
  np.testing.assert_allclose(rates[:5], 2.0 * np.arange(1, 6) / 5, rtol=1e-6)
  assert (np.diff(rates[4:]) <= 0).all()


@pytest.mark.parametrize('shape', ['linear', 'cosine', 'wsd'])
@pytest.mark.parametrize('warmup', [0, 1, 7, 18])
@pytest.mark.parametrize('final', [0.0, 0.1])
def test_ends_exactly(shape, warmup, final):
  rates = _rates(20, schedule=shape, warmup_steps=warmup, final_fraction=final)
  assert rates[-1] == np.float32(final * 2.0)
  np.testing.assert_allclose(rates[warmup], 2.0, rtol=1e-6)


def test_formulas():
  n = np.arange(16) / 15
  np.testing.assert_allclose(
    _rates(16, schedule='linear', warmup_steps=0, final_fraction=0.2),
    2 * (1 - 0.8 * n),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    _rates(16, schedule='cosine', warmup_steps=0, final_fraction=0.2),
    2 * (0.2 + 0.8 * (1 + np.cos(np.pi * n)) / 2),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    _rates(16, schedule='constant', warmup_steps=0), 2.0
  )


def test_rsqrt_floor():
  rates = _rates(100, schedule='rsqrt', warmup_steps=3, final_fraction=0.25)
  want = 2 * np.maximum(np.sqrt(4 / (1 + np.arange(3, 100))), 0.25)
  np.testing.assert_allclose(rates[3:], want, rtol=1e-5)


def test_wsd_holds_then_falls():
  rates = _rates(20, schedule='wsd', warmup_steps=2, decay_steps=5)
  np.testing.assert_allclose(rates[2:15], 2.0)
  np.testing.assert_allclose(
    rates[14:], 2 * np.arange(5, -1, -1) / 5, atol=1e-6
  )
  default = _rates(20, schedule='wsd', warmup_steps=2)
  assert default[15] == 2.0 and default[16] < 2.0
  whole = _rates(20, schedule='wsd', warmup_steps=2, decay_steps=18)
  assert whole[2] == 2.0 and whole[3] < 2.0 and whole[-1] == 0.0


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('steps, warmup', [(1, 0), (2, 1)])
def test_no_room_to_decay_stays_at_peak(shape, steps, warmup):
  rates = _rates(steps, schedule=shape, warmup_steps=warmup)
  assert rates[-1] == 2.0
