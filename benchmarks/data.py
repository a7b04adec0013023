"""How fast are batches made, beside the training that reads them?

Both feeds of a training run alone: the corpus on the devices (`device feed`)
and windows streamed by Grain (`stream feed`: read, stacked and put there).
Each makes the batches that the step would get and adds them up, so that none
can be left out. The training is the whole step of the same config.

Between its turns Grain reads at most `data.prefetch` batches ahead; a turn
takes hundreds.

  python benchmarks/data.py [--config base] [--data FILE] [--pairs 15]
"""

import argparse
import dataclasses
import itertools
import tempfile
from collections.abc import Callable

import guards
import jax
import jax.numpy as jnp
import measure
import numpy as np

from craft_jax.config.load import load_config
from craft_jax.config.settings import Config
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.train.loader import open_feed
from craft_jax.train.run import open_setup
from craft_jax.train.setup import Setup

_BAR = 20.0  # times the training
_SECONDS = 0.5  # of a turn
_FEEDS = {'device feed': 'device', 'stream feed': 'grain'}


def feeder(
  setup: Setup, cfg: Config, placement: str
) -> tuple[Callable[[], None], int, Callable[[], None]]:
  """A call that has a feed make batches, how many, and what closes it."""
  data = dataclasses.replace(cfg.data, placement=placement)
  feed = open_feed(
    dataclasses.replace(cfg, data=data), setup.corpus, setup.mesh, 0
  )
  count = feed.max_steps
  where = mesh_lib.replicated(setup.mesh)
  key, first = setup.run_key, itertools.count(0, count)

  def deliver(source, data_index, key):
    def add(i, total):
      batch = feed.fetch(source, i, data_index + i, key)
      return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, batch)

    shapes = jax.eval_shape(feed.fetch, source, data_index, data_index, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.fori_loop(0, count, add, zeros)

  program = jax.jit(deliver, out_shardings=mesh_lib.batch_sharding(setup.mesh))

  def run() -> None:
    data_index = mesh_lib.put_batch(np.int32(next(first)), where)
    with jax.set_mesh(setup.mesh):
      total = program(feed.source(count), data_index, key)
    jax.block_until_ready(total)

  return run, count, feed.close


def config_of(args: argparse.Namespace) -> Config:
  """The config, reading `--data` if it is given, whatever it reads else."""
  flags = measure.overrides(args)
  cfg = load_config(args.config, flags)
  if args.data and cfg.data.source not in ('path', 'shakespeare'):
    flags = ['data.source=path', 'data.split=fraction', *flags]
    cfg = load_config(args.config, flags)
  return cfg


def main() -> None:
  """Prints the rates; the bar of both feeds is 20 times the training."""
  parser = measure.arguments(__doc__ or '', 15)
  parser.add_argument(
    '--config', default='base', help='file or name (default: base)'
  )
  args = parser.parse_args()
  cfg = config_of(args)
  with tempfile.TemporaryDirectory() as folder:
    setup = open_setup(cfg, f'{folder}/run')
    with setup.closing:
      runs = {'training': (guards.runner(setup, cfg, True), guards._STEPS)}
      for name, placement in _FEEDS.items():
        run, count, close = feeder(setup, cfg, placement)
        setup.closing.callback(close)
        runs[name] = (run, count)
      variants, tokens = {}, {}
      for name, (run, count) in runs.items():
        variants[name], times = measure.lengthened(run, _SECONDS)
        steps = times * count
        tokens[name] = steps * cfg.train.batch_size * cfg.model.context
      seconds = measure.alternate(variants, args.pairs)
  measure.report_rates(
    f'How fast does {args.config} get its batches?',
    {name: [tokens[name] / s for s in seconds[name]] for name in seconds},
    dict.fromkeys(seconds, 'training'),
    'tokens/s',
    dict.fromkeys(_FEEDS, _BAR),
  )


if __name__ == '__main__':
  main()
