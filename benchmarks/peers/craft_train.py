"""Trains with Craft when told to, by the program that `craft train` runs."""

import argparse
import functools
import tempfile
import time

import jax
import worker

from craft_jax.config.load import load_config
from craft_jax.model.precision import Policy, product, round_operand
from craft_jax.model.protocol import param_count
from craft_jax.runtime import xla_flags
from craft_jax.runtime.signals import Interrupts
from craft_jax.train.run import open_loop, open_setup


def main() -> None:
  """Opens a run in a temporary folder and serves its training loop."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('config')
  parser.add_argument('settings', nargs='*')
  parser.add_argument('--steps', type=int, required=True)
  args = parser.parse_args()
  xla_flags.use()
  cfg = load_config(
    args.config, [*args.settings, 'train.steps=1000000', 'eval.every=0',
                  'checkpoint.every=0']
  )  # fmt: skip
  with tempfile.TemporaryDirectory() as folder:
    setup = open_setup(cfg, f'{folder}/run')
    with setup.closing:
      loop = open_loop(setup, True, Interrupts())

      def run() -> None:
        loop.end = loop.step + args.steps
        loop._train()

      worker.serve(
        run,
        params=param_count(loop.state.params),
        flops_per_token=setup.model.flops_per_token(cfg.model.context),
        precision=setup.model.policy.precision,
        jax=jax.__version__,
        platform=jax.default_backend(),
        products_per_second=_products_per_second(setup.model.policy),
        devices=jax.device_count(),
      )
      loop.feed.close()
      loop.writer.close()


def _products_per_second(policy: Policy) -> float:
  """Operations per second of large products on all devices."""
  width = 1024 if jax.default_backend() == 'cpu' else 8192
  devices = jax.devices()
  a_DD = jax.random.normal(jax.random.key(0), (width, width))
  a_DD = round_operand(a_DD, policy)
  copies = [jax.device_put(a_DD, device) for device in devices]
  multiply = jax.jit(functools.partial(product, 'IJ,JK->IK', policy))
  times = []
  for _ in range(11):
    begin = time.perf_counter()
    jax.block_until_ready([multiply(a_DD, a_DD) for a_DD in copies])
    times.append(time.perf_counter() - begin)
  return len(devices) * 2 * width**3 / min(times)


if __name__ == '__main__':
  main()
