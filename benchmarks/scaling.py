"""What does a second device bring, and a fourth and an eighth?

Training of `shakespeare_cpu` and of `base` on 1, 2, 4 and 8 devices: as many
GPUs, or CPU devices up to the number of usable cores, where they divide the
batch. The number is fixed when a process starts, so each has its own; they are
asked in turn. The batch stays the same, so a device gets a smaller share.

One CPU device may use all cores: XLA spreads a large product over them. With
`--pin` a process gets as many cores as devices, which asks for what a core
brings. A TPU belongs to one process at a time and is not measured here.

  python benchmarks/scaling.py [--data tinyshakespeare.txt] [--pairs 7] [--pin]
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import measure
import workers

from craft_jax.config.load import load_config

_CONFIGS = ('shakespeare_cpu', 'base')
_COUNTS = (1, 2, 4, 8)
_VISIBLE = 'CUDA_VISIBLE_DEVICES'
_PREALLOCATE = 'XLA_PYTHON_CLIENT_PREALLOCATE'


def _devices() -> tuple[str, int]:
  """Platform and number of devices, asked in a process that ends.

  This one must not start JAX while others need the memory of the GPUs.
  """
  script = pathlib.Path(measure.__file__)
  done = subprocess.run(
    [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True
  )
  platform, count, *_ = done.stdout.split('-')
  return platform, int(count)


@contextlib.contextmanager
def _given(platform: str, count: int, pin: bool) -> Iterator[None]:
  """What is started meanwhile gets `count` devices, or cores if pinned."""
  before = {name: os.environ.get(name) for name in (_VISIBLE, _PREALLOCATE)}
  cores = os.sched_getaffinity(0) if pin else set()
  try:
    if platform == 'gpu':
      all_gpus = before[_VISIBLE] or ','.join(map(str, range(count)))
      os.environ[_VISIBLE] = ','.join(all_gpus.split(',')[:count])
      os.environ[_PREALLOCATE] = 'false'  # several processes share a GPU
    if pin:
      os.sched_setaffinity(0, sorted(cores)[:count])
    yield
  finally:
    if pin:
      os.sched_setaffinity(0, cores)
    for name, value in before.items():
      os.environ.pop(name, None)
      if value is not None:
        os.environ[name] = value


def _arguments() -> argparse.Namespace:
  parser = measure.arguments(__doc__ or '', 7)
  parser.add_argument(
    '--steps', type=int, default=20, help='steps of a turn (default: 20)'
  )
  parser.add_argument(
    '--pin', action='store_true', help='as many cores as devices (Linux, CPU)'
  )
  return parser.parse_args()


def main() -> None:
  """Prints the rates, and their ratios to one device; no bars."""
  args = _arguments()
  platform, available = _devices()
  if platform not in ('cpu', 'gpu') or (args.pin and platform != 'cpu'):
    raise SystemExit(f'scaling: not measured on {platform} like this')
  found, base_of = {}, {}
  with contextlib.ExitStack() as stack:
    for config in _CONFIGS:
      # The text of --data is that of shakespeare_cpu; base brings its own.
      flags = args.set if config == 'base' else measure.overrides(args)
      batch_size = load_config(config, flags).train.batch_size
      for count in _COUNTS:
        if count > available or batch_size % count:
          continue
        name = f'{config}, {count} device{"s" if count > 1 else ""}'
        more = [f'mesh.cpu_devices={count}'] if platform == 'cpu' else []
        with _given(platform, count, args.pin):
          worker = workers.Worker(
            'craft_train', [config, *flags, *more, f'--steps={args.steps}']
          )
        stack.callback(worker.close)
        assert worker.facts['devices'] == count, worker.facts
        found[name], base_of[name] = worker, f'{config}, 1 device'
    seconds = measure.alternate(found, args.pairs)
  cores = ', each with a core of its own' if args.pin else ''
  measure.report_rates(
    f'How fast is training on more devices{cores}?',
    {name: [args.steps / s for s in seconds[name]] for name in seconds},
    base_of,
    'steps/s',
    devices=max(worker.facts['devices'] for worker in found.values()),
  )


if __name__ == '__main__':
  main()
