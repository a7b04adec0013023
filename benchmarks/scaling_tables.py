"""What a model needs: the tables of docs/scaling.md, by arithmetic.

  python benchmarks/scaling_tables.py [--write PAGE | --check PAGE]

Nothing is measured; it runs in seconds on any machine. `--check` only compares
the page, docs/scaling.md, and ends with 1 where it is stale.
"""

import argparse
import dataclasses
import pathlib
import sys

import pages
from pages import table

from craft_jax.config.settings import Config, Model
from craft_jax.inference.metrics import peak_flops
from craft_jax.model.build import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.runtime.files import write_atomic
from craft_jax.train import plan
from craft_jax.train.plan.memory import memory
from craft_jax.train.plan.text import amount

_CONTEXT = 2048
# name: width, depth. Byte models with heads of 128 entries, and Muon.
_MODELS = {'100 M': (768, 14), '1 B': (2048, 20), '10 B': (5120, 32)}


def _devices() -> str:
  rows = (
    (
      f'`{name}`',
      amount(d.memory),
      amount(peak_flops(d.kind, d.platform)[0] or 0, 'FLOP/s'),
      amount(d.memory_bandwidth) + '/s',
    )
    for name, d in plan.DEVICES.items()
  )
  return table(('device', 'memory', 'bfloat16 peak', 'to memory'), rows)


def _models() -> str:
  rows = []
  for name, (width, depth) in _MODELS.items():
    heads = width // 128
    cfg = Config(
      model=Model(width=width, depth=depth, num_heads=heads, context=_CONTEXT)
    )
    sketch = plan.sketch(cfg)
    used = memory(sketch, plan.Layout())
    windows = (
      build(
        dataclasses.replace(cfg.model, precision='bfloat16', remat=remat),
        sketch.vocabulary_size,
        PLATFORMS[platform],
      )
      .activation_bytes(1, _CONTEXT)
      .kept
      for remat, platform in (
        ('none', 'tpu'),
        ('none', 'gpu'),
        ('dots', 'gpu'),
        ('block', 'gpu'),
      )
    )
    rows.append(
      (
        name,
        f'{depth} x {width}',
        f'{sketch.num_params / 1e6:,.0f} M',
        amount(sketch.flops_per_token, 'FLOP'),
        amount(used.state),
        amount(used.state + used.gradients + used.updates),
        *map(amount, windows),
      )
    )
  return table(
    (
      'model', 'layers x width', 'parameters', 'per token', 'state',
      'with gradients and updates', 'a window, `none`', 'the same, cuDNN',
      '`dots`', '`block`',
    ),
    rows,
  )  # fmt: skip


def refreshed(page: str) -> str:
  """The page with every table between its markers.

  Raises:
    ValueError: a table has no place.
  """
  return pages.refreshed(page, {'devices': _devices(), 'models': _models()})


def main() -> None:
  """Prints the tables, writes them into a page, or checks a page."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--write', metavar='PAGE', help='refresh this page')
  parser.add_argument('--check', metavar='PAGE', help='is this page fresh?')
  args = parser.parse_args()
  if args.check:
    page = pathlib.Path(args.check).read_text(encoding='utf-8')
    if page != refreshed(page):
      command = f'python benchmarks/scaling_tables.py --write {args.check}'
      sys.exit(f'{args.check} is stale: {command}')
    return
  if args.write:
    path = pathlib.Path(args.write)
    write_atomic(path, refreshed(path.read_text(encoding='utf-8')))
  print(_devices(), _models(), sep='\n\n')


if __name__ == '__main__':
  main()
