"""What the guard against bad steps and the clipping cost a step.

The step of `shakespeare_cpu` as it is, and two that are written here: without
the guard (no finite check, no statistics, no choice between new and old state),
and without clipping as well.

  python benchmarks/guards.py [--data tinyshakespeare.txt] [--pairs 150]
"""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import measure
import numpy as np
import optax

from craft_jax.config.load import load_config
from craft_jax.config.settings import Config
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.model.sharding import rules
from craft_jax.train import step as step_lib
from craft_jax.train.dispatch import make_run
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.run import open_setup
from craft_jax.train.setup import Setup

_STEPS = 10


def unguarded_step(cfg: Config, setup: Setup, optimizer: Any) -> Any:
  """A training step that believes every gradient."""

  def train_step(state, batch, key):
    grads, sums = step_lib._gradients(
      cfg, setup.model, state.params, batch, key
    )
    grads = jax.tree.map(lambda g: g / sums['count'], grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    checksum = step_lib._checksum(batch)
    return state, sums | {'good': np.float32(1), 'batch': checksum}

  return train_step


def runner(setup: Setup, cfg: Config, guard: bool) -> Callable[[], None]:
  """A function that does `_STEPS` more steps of its own run."""
  optimizer = build_optimizer(cfg, setup.model, setup.mesh)
  state = setup.first_state()
  feed = setup.open_feed(0)
  step = (
    step_lib.make_train_step(cfg, setup.model, optimizer)
    if guard
    else unguarded_step(cfg, setup, optimizer)
  )
  shapes = jax.eval_shape(optimizer.init, state.params)
  places = rules.state_shardings(
    shapes, state.params, setup.mesh, setup.model.sharding_rules
  )
  opt_state = jax.jit(optimizer.init, out_shardings=places)(state.params)
  state = dataclasses.replace(state, opt_state=opt_state)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  replicated = mesh_lib.replicated(setup.mesh)
  trips = mesh_lib.put_batch(np.int32(_STEPS), replicated)
  inputs = (feed.source(_STEPS), setup.run_key, trips)
  with jax.set_mesh(setup.mesh):
    program = (
      jax.jit(
        make_run(step, feed.fetch, _STEPS),
        donate_argnums=0,
        out_shardings=(shardings, replicated, replicated),
      )
      .lower(state, *inputs)
      .compile()
    )

  def run() -> None:
    nonlocal state
    state, rows, _ = program(state, *inputs)
    jax.block_until_ready(rows)

  return run


def main() -> None:
  """Prints the ratios; the bar is 1.02."""
  args = measure.arguments(__doc__ or '', 150).parse_args()
  flags = measure.overrides(args)
  cfg = load_config('shakespeare_cpu', flags)
  bare = load_config('shakespeare_cpu', [*flags, 'optim.clip_norm=0'])
  with tempfile.TemporaryDirectory() as folder:
    setup = open_setup(cfg, f'{folder}/run')
    with setup.closing:
      variants = {
        'neither': runner(setup, bare, False),
        'clipping': runner(setup, cfg, False),
        'guard and clipping': runner(setup, cfg, True),
      }
      seconds = measure.alternate(variants, args.pairs)
  measure.report(
    'What do the guard and clipping cost a step of shakespeare_cpu?',
    seconds,
    'neither',
    _STEPS,
    {'guard and clipping': 1.02},
  )


if __name__ == '__main__':
  main()
