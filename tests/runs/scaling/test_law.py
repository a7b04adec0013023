"""Constants that are known come back, within the intervals that are told."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize

from craft_jax.runs.scaling import law as law_lib
from craft_jax.runs.scaling.law import Cost, Law

LAW = Law(E=1.1, A=60.0, alpha=0.35, B=200.0, beta=0.3)
SIZES, LENGTHS = np.geomspace(2e4, 2e6, 5), np.geomspace(1e6, 6e7, 4)
PARAMS, TOKENS = map(np.ravel, np.meshgrid(SIZES, LENGTHS))
GROUPS = np.arange(len(PARAMS))


def values(law):
  return np.array(dataclasses.astuple(law))


def noisy(scale, seed=0):
  noise = np.random.default_rng(seed).normal(0, scale, len(PARAMS))
  return LAW.loss(PARAMS, TOKENS) * np.exp(noise)


def test_without_noise_the_law_comes_back():
  found = law_lib.fit(PARAMS, TOKENS, LAW.loss(PARAMS, TOKENS))
  np.testing.assert_allclose(values(found), values(LAW), rtol=1e-4)


def test_a_law_without_a_floor():
  law = Law(E=1e-9, A=60.0, alpha=0.2, B=80.0, beta=0.25)
  found = law_lib.fit(PARAMS, TOKENS, law.loss(PARAMS, TOKENS))
  assert found.E < 1e-3
  np.testing.assert_allclose(values(found)[1:], values(law)[1:], rtol=2e-3)


@pytest.mark.parametrize('seed', range(2))
def test_known_constants_lie_in_the_intervals(seed):
  loss = noisy(0.005, seed)
  draws = law_lib.bootstrap(PARAMS, TOKENS, loss, GROUPS, 80)
  held = [
    low <= true <= high
    for true, (low, high) in zip(
      values(LAW),
      map(law_lib.interval, np.transpose([values(d) for d in draws])),
      strict=True,
    )
  ]
  # 90 % each, and not independent of each other.
  assert sum(held) >= 4
  true = law_lib.best_split(LAW, Cost(6.0, 1.0), 1e16)
  low, high = law_lib.interval(
    [law_lib.best_split(d, Cost(6.0, 1.0), 1e16).params for d in draws]
  )
  assert low <= true.params <= high < 5 * low


def test_seeds_are_not_runs_of_their_own():
  """Four copies of each point say no more than one."""
  loss = noisy(0.01)
  repeat = [np.repeat(x, 4) for x in (PARAMS, TOKENS, loss, GROUPS)]

  def width(args):
    draws = law_lib.bootstrap(*args, 40)
    low, high = law_lib.interval([draw.beta for draw in draws])
    return high - low

  once = width((PARAMS, TOKENS, loss, GROUPS))
  assert width(repeat) == pytest.approx(
    once, rel=0.05
  )  # the same draws each time
  separate = width([*repeat[:3], np.arange(4 * len(GROUPS))])
  assert separate < 0.7 * once


def test_a_run_that_went_wrong_hardly_counts():
  loss = noisy(0.002)
  loss[7] *= 1.5
  found = law_lib.fit(PARAMS, TOKENS, loss)
  np.testing.assert_allclose(
    values(found)[[0, 2, 4]], values(LAW)[[0, 2, 4]], rtol=0.1
  )


@pytest.mark.parametrize('cost', [Cost(6.0, 1.0), Cost(40.0, 0.85)])
def test_the_best_split_is_the_minimum(cost):
  flops = 1e15
  found = law_lib.best_split(LAW, cost, flops)
  assert cost.per_token(found.params) * found.tokens == pytest.approx(flops)

  def loss(log_params):
    params = np.exp(log_params)
    return LAW.loss(params, flops / cost.per_token(params))

  least = scipy.optimize.minimize_scalar(loss, bounds=(5, 25), method='bounded')
  assert found.loss == pytest.approx(least.fun, rel=1e-9)
  assert np.log(found.params) == pytest.approx(least.x, abs=1e-3)


def test_the_cost_by_size():
  params = np.array([1e4, 1e5, 1e6])
  found = law_lib.cost_of(params, 40 * params**0.85)
  assert (found.scale, found.power) == pytest.approx((40, 0.85))
