"""Is the memory of a training step what its compiled program says?

Models whose temporaries exceed 1 GB on the devices of this machine do a few
steps, each in a process of its own, one after the other. `expected` is what
XLA's memory_analysis says a step takes beside its arguments, on all devices,
and on a CPU 65 MB more for each that no buffer accounts for;
`measured` is the peak of the process (the kernel's VmHWM, reset after the
compilation) over its size then, on an accelerator that of JAX's allocator.
`planned` is what `craft plan` says by arithmetic, without compiling.

  python benchmarks/memory.py [--only=block]
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import measure

from craft_jax.model.sharding.mesh import usable_cores

_ROOT = pathlib.Path(__file__).parents[1]
_BAR = 0.1
_STEPS = 2
_SIZE = ['model.width=192', 'model.depth=3', 'model.num_heads=3']
_CPU = {
  'unrolled': [
    'model.width=256', 'model.depth=4', 'model.num_heads=4',
    'model.context=256', 'train.batch_size=64',
  ],
  'gelu, float32': [
    *_SIZE, 'model.context=256', 'train.batch_size=64', 'model.mlp=gelu',
    'model.norm=layer', 'model.precision=float32',
  ],
  'remat=block': [
    *_SIZE, 'model.context=256', 'train.batch_size=192', 'model.remat=block',
  ],
  'context 1024, accumulate=2': [
    *_SIZE, 'model.context=1024', 'train.batch_size=32', 'train.accumulate=2',
  ],
}  # fmt: skip
# Of GPT-2's width, for one accelerator of at least 40 GB.
_WIDE = ['model.width=768', 'model.depth=12', 'model.num_heads=12']
_ACCELERATOR = {
  '12 x 768, context 1024': [
    *_WIDE, 'model.context=1024', 'train.batch_size=32',
  ],
  'float32, scanned': [
    *_WIDE, 'model.context=512', 'train.batch_size=32',
    'model.precision=float32', 'model.unroll=1',
  ],
  'remat=block': [
    *_WIDE, 'model.context=1024', 'train.batch_size=64', 'model.remat=block',
  ],
  'context 4096, accumulate=2': [
    *_WIDE, 'model.context=4096', 'train.batch_size=16', 'train.accumulate=2',
  ],
  '6 x 384, context 256': [
    'model.width=384', 'model.depth=6', 'model.num_heads=6',
    'model.context=256', 'train.batch_size=64',
  ],
}  # fmt: skip


def measured(settings: list[str]) -> dict[str, Any]:
  """What `craft plan --compile --steps` says of a run, on all devices."""
  cores, flags = 1, [*settings, 'eval.batch_size=2']
  if jax.default_backend() == 'cpu':
    cores = min(2, usable_cores())
    flags += [f'mesh.data={cores}', f'mesh.cpu_devices={cores}']
  path = filter(None, [str(_ROOT), os.environ.get('PYTHONPATH')])
  done = subprocess.run(
    [sys.executable, '-m', 'craft_jax.main', 'plan', '--config=toy',
     '--compile', f'--steps={_STEPS}', '--json',
     *(f'--config.{flag}' for flag in flags)],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(path)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )  # fmt: skip
  found = json.loads(done.stdout.splitlines()[-1])
  compiled = found['compiled'][0]
  expected = compiled['expected_peak']
  peak = found['measured']['peak']
  return {
    'expected': expected,
    'measured': peak,
    'planned': cores * compiled['planned'],
    'ratio': peak / expected,
    'error': abs(expected / peak - 1),
    'planned_ratio': peak / (cores * compiled['planned']),
    'seconds_per_step': found['measured']['seconds_per_step'],
    'chars_per_second': found['measured']['chars_per_second'],
    'bar': _BAR,
  }


def main() -> None:
  """Prints the bytes; the bar is a tenth."""
  parser = measure.arguments(__doc__ or '')
  parser.add_argument('--only', help='models, or parts of names, with commas')
  args = parser.parse_args()
  # An accelerator is this process's and its children's.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  cases = _CPU if jax.default_backend() == 'cpu' else _ACCELERATOR
  wanted = measure.chosen(cases, args.only)
  question = 'Is the memory of a training step what its program says?'
  print(question, measure.hardware(), sep='\n')
  print(
    f'{"model":28}{"expected":>10}{"measured":>10}{"over it":>9}'
    f'{"planned":>10}{"over it":>9}'
  )
  rows = {}
  for name, settings in cases.items():
    if name not in wanted:
      continue
    row = rows[name] = measured(measure.overrides(args, *settings))
    print(
      f'{name:28}{row["expected"] / 1e6:7.0f} MB{row["measured"] / 1e6:7.0f} MB'
      f'{row["ratio"]:9.3f}{row["planned"] / 1e6:7.0f} MB'
      f'{row["planned_ratio"]:9.3f}',
      flush=True,
    )
  measure.conclude(question, 1, rows, bars='error at most')


if __name__ == '__main__':
  main()
