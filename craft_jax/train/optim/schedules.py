"""Learning rate schedules: linear warm-up, then one of five shapes.

Steps count from 0: a run of `steps` updates reads `0 .. steps - 1`.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax

from craft_jax.config.settings import Optim, Train

_WSD_SHARE = 5  # by default, wsd decays over the last fifth of the run


def run_schedule(optim: Optim, train: Train, peak: float) -> optax.Schedule:
  """The learning rate of each step of a run, wherever it was extended.

  Args:
    optim: shape, warm-up and decay.
    train: steps, and the steps at which the run was rewarmed.
    peak: the rate at the end of each warm-up.
  """
  rewarmed = [tuple(map(int, each.split(':'))) for each in train.extended]
  horizons = [*(steps for _, steps in rewarmed), train.steps]
  schedule = build_schedule(optim, horizons[0], peak)
  for (start, _), steps in zip(rewarmed, horizons[1:], strict=True):
    schedule = _rewarmed(optim, schedule, start, steps, peak)
  return schedule


def rewarm_steps(optim: Optim, start: int, steps: int) -> int:
  """Steps of the second warm-up: `optim.warmup_steps`, if they fit.

  Args:
    optim: of the run.
    start: steps done before.
    steps: of the whole run, now.
  """
  rest = steps - start
  fits = optim.warmup_steps < rest
  return optim.warmup_steps if fits else rest // 10


def _rewarmed(
  cfg: Optim, before: optax.Schedule, start: int, steps: int, peak: float
) -> optax.Schedule:
  """`before` until `start`, then a warm-up from its last rate, then the shape.

  Re-warming as in Gupta et al. 2023 (arXiv:2308.04014).
  """
  warmup = rewarm_steps(cfg, start, steps)
  cfg = dataclasses.replace(cfg, warmup_steps=warmup)
  after = build_schedule(cfg, steps - start, peak)

  def schedule(count):
    n = count - start
    low = before(start - 1)
    climb = low + (peak - low) * (n + 1) / (warmup + 1)
    rate = jnp.where(n < warmup, climb, after(n))
    return jnp.where(n < 0, before(count), rate)

  return schedule


def build_schedule(cfg: Optim, steps: int, peak: float) -> optax.Schedule:
  """Builds the learning rate schedule of a run.

  Warm-up is linear, from `peak / (warmup_steps + 1)` at step 0, so that no step
  has a rate of zero, to `peak` at step `warmup_steps`. `linear`, `cosine` and
  `wsd` reach exactly `final_fraction * peak` at step `steps - 1`; `rsqrt` does
  not depend on `steps` and uses it as a lower bound. A run that ends with the
  warm-up stays at the peak.

  Args:
    cfg: optimizer settings: shape, warm-up and decay.
    steps: updates of the whole run.
    peak: learning rate at the end of the warm-up.

  Returns:
    A function from the step, which may be traced, to the learning rate.
  """
  warmup = cfg.warmup_steps
  span = steps - 1 - warmup  # steps from the peak to the last one
  if span > 0:
    tail = _SHAPES[cfg.schedule](cfg, span, peak)
  else:
    tail = optax.constant_schedule(peak)
  if not warmup:
    return tail
  climb = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules([climb, tail], [warmup])


def _line(start: float, end: float, span: int) -> optax.Schedule:
  """Linear schedule from `start` at 0 to exactly `end` from `span` on.

  `optax.linear_schedule` computes 1 - n / span, which compiled by XLA is 6e-8
  instead of 0 at the end; counting the remaining steps is exact.
  """

  def schedule(count):
    left = jnp.clip(span - count, 0, span) / span
    return end + (start - end) * left

  return schedule


def _constant(cfg: Optim, span: int, peak: float) -> optax.Schedule:
  return optax.constant_schedule(peak)


def _linear(cfg: Optim, span: int, peak: float) -> optax.Schedule:
  return _line(peak, cfg.final_fraction * peak, span)


def _cosine(cfg: Optim, span: int, peak: float) -> optax.Schedule:
  return optax.cosine_decay_schedule(peak, span, alpha=cfg.final_fraction)


def _rsqrt(cfg: Optim, span: int, peak: float) -> optax.Schedule:
  """`peak * sqrt(k / (k + n))`, n steps after the peak, k = warm-up + 1."""
  start = cfg.warmup_steps + 1

  def schedule(count):
    rate = jnp.sqrt(start / (start + count))
    return peak * jnp.maximum(rate, cfg.final_fraction)

  return schedule


def _wsd(cfg: Optim, span: int, peak: float) -> optax.Schedule:
  steps = span + 1 + cfg.warmup_steps
  decay = min(cfg.decay_steps or max(1, steps // _WSD_SHARE), span)
  fall = _line(peak, cfg.final_fraction * peak, decay)
  if decay == span:
    return fall
  return optax.join_schedules(
    [optax.constant_schedule(peak), fall], [span - decay]
  )


_SHAPES: dict[str, Callable[[Optim, int, float], optax.Schedule]] = {
  'constant': _constant,
  'linear': _linear,
  'cosine': _cosine,
  'rsqrt': _rsqrt,
  'wsd': _wsd,
}
