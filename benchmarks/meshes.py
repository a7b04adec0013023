"""Data parallel against sharded parameters, on the devices at hand.

The step of `shakespeare_cpu` with all devices on the axis `data`, on `fsdp` and
on `tensor`, where the sizes divide.

  python benchmarks/meshes.py [--data tinyshakespeare.txt] [--pairs 15]
"""

import tempfile

import guards
import jax
import measure

from craft_jax.config.load import load_config
from craft_jax.train.run import open_setup

_AXES = ('data', 'fsdp', 'tensor')


def main() -> None:
  """Prints the ratios of the medians; the bar of fsdp on two CPUs is 1.15."""
  args = measure.arguments(__doc__ or '', 15).parse_args()
  variants = {}
  with tempfile.TemporaryDirectory() as folder:
    for axis in _AXES:
      mesh = [f'mesh.{name}={-1 if name == axis else 1}' for name in _AXES]
      cfg = load_config('shakespeare_cpu', measure.overrides(args, *mesh))
      # Its lock is let go at once: nothing is written there.
      setup = open_setup(cfg, f'{folder}/{axis}')
      setup.closing.close()
      variants[axis] = guards.runner(setup, cfg, True)
    seconds = measure.alternate(variants, args.pairs)
  measure.report(
    f'What does sharding cost a step of shakespeare_cpu on '
    f'{jax.device_count()} devices?',
    seconds,
    'data',
    guards._STEPS,
    {'fsdp': 1.15},
  )


if __name__ == '__main__':
  main()
