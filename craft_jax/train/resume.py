"""With which settings a saved run goes on, and which it cannot change."""

import dataclasses
import shlex

import jax
import numpy as np

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.train.optim.schedules import rewarm_steps, run_schedule

# Handled by the learning rates of the steps that are done.
_LENGTH = ('train.steps: ', 'train.extended: ')


def resumed(old: Config, new: Config, step: int, workdir: str) -> Config:
  """The config with which a run goes on from a checkpoint.

  Settings that are marked `free` may change. `train.steps` may if the learning
  rates of the steps done stay what they were, or with `train.extend=rewarm`.

  Args:
    old: config of the checkpoint.
    new: what was asked for.
    step: steps done.
    workdir: of the run, for messages.

  Raises:
    UserError: another setting was changed, or the run cannot have this length.
  """
  changes = [
    change
    for change in config_lib.identity_changes(old, new)
    if not change.startswith(_LENGTH)
  ]
  if changes:
    raise UserError(
      f'the run in {workdir} was started with other settings '
      f'({"; ".join(changes)}); leave them out to go on with it, or '
      'start a new run from its weights: craft train '
      f'--from={shlex.quote(workdir)} --workdir=NEW'
    )
  if new.train.steps < step:
    raise UserError(
      f'train.steps={new.train.steps}, and the run in {workdir} has done '
      f'{step}; give at least that'
    )
  rewarmed = (*old.train.extended, f'{step}:{old.train.steps}')
  tried = [new.train.extended, old.train.extended]
  if new.train.extend == 'rewarm' and 0 < step < new.train.steps:
    tried.append(rewarmed)
  for extended in tried:
    cfg = _with_extended(new, extended)
    if _same_rates(old, cfg, step):
      return cfg
  raise UserError(
    f'train.steps={new.train.steps} instead of {old.train.steps} would change '
    f'the learning rates of the {step} steps that the run in {workdir} has '
    f'done (optim.schedule={old.optim.schedule}); add '
    f'--config.train.extend=rewarm: {described(_with_extended(new, rewarmed))}'
  )


def described(cfg: Config) -> str:
  """What the last extension does to the learning rate, in a line; or ''."""
  if not cfg.train.extended:
    return ''
  start = int(cfg.train.extended[-1].partition(':')[0])
  warmup = rewarm_steps(cfg.optim, start, cfg.train.steps)
  peak = cfg.optim.learning_rate
  rates = _rates(cfg, [start - 1, cfg.train.steps - 1])
  return (
    f'from step {start} the learning rate climbs from {rates[0]:.3g} to '
    f'{peak:.3g} in {warmup} steps, then {cfg.optim.schedule} to '
    f'{rates[1]:.3g} at step {cfg.train.steps}'
  )


def _with_extended(cfg: Config, extended: tuple[str, ...]) -> Config:
  train = dataclasses.replace(cfg.train, extended=extended)
  return dataclasses.replace(cfg, train=train)


def _same_rates(old: Config, new: Config, step: int) -> bool:
  if old.train == new.train:
    return True
  done = np.arange(step)
  return np.array_equal(_rates(old, done), _rates(new, done))


def _rates(cfg: Config, steps) -> np.ndarray:
  schedule = run_schedule(cfg.optim, cfg.train, cfg.optim.learning_rate)
  return np.asarray(jax.jit(jax.vmap(schedule))(np.asarray(steps, np.int32)))
