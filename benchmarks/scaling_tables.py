"""Which axis to grow when: the tables of docs/scaling.md, by arithmetic.

  python benchmarks/scaling_tables.py [--write PAGE | --check PAGE]

Prints every table and, last, one JSON object with the plans. Nothing is
measured; it runs in seconds on any machine. `--check` only compares the page,
docs/scaling.md, and ends with 1 where it is stale.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable

import pages
from pages import table

from craft_jax.config.settings import Config, Model, Train
from craft_jax.model.build import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.runtime.files import write_atomic
from craft_jax.train import plan
from craft_jax.train.plan.devices import Device
from craft_jax.train.plan.layout import Layout, span
from craft_jax.train.plan.step import UTILISATION
from craft_jax.train.plan.text import amount, duration

_CONTEXT = 2048
# name: width, depth, rows of the batch.
_MODELS = {
  '100 M': (768, 14, 512),
  '1 B': (2048, 20, 1024),
  '10 B': (5120, 32, 2048),
}
_MACHINES = (('h100-80gb', 8), ('v5e', 256), ('h100-80gb', 512), ('v5p', 512))
_SHOWN = ('a100-80gb', 'h100-80gb', 'h200-141gb', 'v5e', 'v5p', 'v6e')


def config(name: str, rows: int = 0) -> Config:
  """The byte model of a name, with heads of 128 entries and Muon."""
  width, depth, usual = _MODELS[name]
  return Config(
    model=Model(
      width=width, depth=depth, num_heads=width // 128, context=_CONTEXT
    ),
    train=Train(batch_size=rows or usual),
  )


def recommended(name: str, device: str, devices: int, rows: int = 0):
  """The recommended plan of a model, and its reason."""
  sketch = plan.sketch(config(name, rows))
  return plan.recommend(sketch, plan.find_device(device), devices)


def _devices() -> str:
  rows = (
    (
      f'`{name}`',
      amount(d.memory),
      amount(d.peak, 'FLOP/s'),
      amount(d.memory_bandwidth) + '/s',
      amount(d.fast) + '/s',
      str(d.domain),
      amount(d.slow) + '/s',
    )
    for name, d in plan.DEVICES.items()
  )
  return table(
    (
      'device', 'memory', 'bfloat16 peak', 'to memory', 'fast link',
      'devices on it', 'to others',
    ),
    rows,
  )  # fmt: skip


# Sizes at which sending takes as long as computing.
#
# With P parameters, S tokens per device, width D, R = peak FLOP/s times the
# utilisation and W bytes/s, in the limit of many devices and without the
# products of attention itself:
#
#   data or fsdp  8 P / W      against  6 P S / R             -> S = 4/3 R / W
#   tensor = t    48 S D (t-1)/t / W  against  72 D^2 S / t / R
#                                            -> D = 2/3 (t - 1) R / W
#
# 8 bytes per parameter: a float32 all-reduce of the gradients sends 2 x 4, and
# fsdp 4 for the gradients and 2 x 2 for rounded kernels. 48 bytes per layer and
# entry of the stream: six float32 all-reduces (without a gate or remat=block).


def critical_tokens(
  device: Device, utilisation: float = UTILISATION, domains: int = 1
) -> float:
  """Tokens per device and step from which `data` and `fsdp` cost less.

  Args:
    device: fills its domain of fast links.
    utilisation: share of the peak.
    domains: 1, or more, over which each device sends its share of the sums.
  """
  inside = span(device, Layout(1, device.domain), 'fsdp').fast
  seconds = 1 / inside
  if domains > 1:
    seconds += (domains - 1) / domains / (device.domain * device.slow)
  return 4 / 3 * device.peak * utilisation * seconds


def critical_width(
  device: Device, tensor: int, utilisation: float = UTILISATION
) -> float:
  """Width from which `tensor` sends for less time than it computes.

  Args:
    device: fills its domain of fast links; the rest of it is on `fsdp`.
    tensor: devices on the axis.
    utilisation: share of the peak.
  """
  layout = Layout(1, max(1, device.domain // tensor), tensor)
  speed = span(device, layout, 'tensor').fast
  return 2 / 3 * (tensor - 1) * device.peak * utilisation / speed


def _critical() -> str:
  rows = []
  for name in _SHOWN:
    device = plan.find_device(name)
    widths = (critical_width(device, t) for t in (2, 4, 8))
    rows.append(
      (
        f'`{name}`',
        f'{critical_tokens(device):,.0f}',
        f'{critical_tokens(device, domains=64):,.0f}',
        *(f'{width:,.0f}' for width in widths),
      )
    )
  return table(
    (
      'device', 'tokens per device, one domain', '64 domains',
      'width, tensor=2', 'tensor=4', 'tensor=8',
    ),
    rows,
  )  # fmt: skip


def _models() -> str:
  rows = []
  for name, (width, depth, _) in _MODELS.items():
    cfg = config(name)
    sketch = plan.sketch(cfg)
    used = plan.estimate(sketch, plan.find_device('v5p'), plan.Layout()).memory
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


def _row(result: plan.Plan) -> tuple[str, ...]:
  """What is said of a plan in each table of plans."""
  axes = (result.on_axis(axis) for axis in plan.Layout._fields)
  least, most = result.step_seconds
  return (
    ' x '.join(map(str, result.layout)),
    f'{result.sketch.cfg.model.remat}, {result.sketch.cfg.train.accumulate}',
    amount(result.memory.total) + ('' if result.fits else ', **too much**'),
    duration(result.compute_seconds),
    duration(result.optimizer_seconds),
    *(duration(seconds) if seconds else '' for seconds in axes),
    f'{result.communication_seconds / result.compute_seconds:.2f}',
    f'{amount(result.tokens / most, "")} to '
    f'{amount(result.tokens / least, "")}',
  )


_COLUMNS = (
  'mesh', 'remat, accumulate', 'bytes per device', 'products', 'optimizer',
  'data', 'fsdp', 'tensor', 'sent / computed', 'tokens per second',
)  # fmt: skip


def _plans() -> str:
  rows = []
  for device, devices in _MACHINES:
    for name in _MODELS:
      result, _ = recommended(name, device, devices)
      tokens = amount(result.tokens, '')
      rows.append((f'{devices} x `{device}`', name, tokens, *_row(result)))
  return table(('devices', 'model', 'batch', *_COLUMNS), rows)


def _compared(
  name: str, rows: int, device: str, layouts: Iterable[tuple[int, int, int]]
) -> str:
  """One model under remat=block on the same devices, laid out in some ways."""
  cfg = config(name, rows)
  cfg = dataclasses.replace(
    cfg, model=dataclasses.replace(cfg.model, remat='block')
  )
  sketch = plan.sketch(cfg)
  target = plan.find_device(device)
  plans = (
    plan.estimate(sketch, target, plan.Layout(*layout)) for layout in layouts
  )
  return table(_COLUMNS, map(_row, plans))


def _node() -> str:
  ways = ((8, 1, 1), (1, 8, 1), (1, 4, 2), (1, 2, 4), (1, 1, 8))
  return _compared('1 B', 64, 'h100-80gb', ways)


def _cluster() -> str:
  ways = (
    (512, 1, 1), (64, 8, 1), (8, 64, 1), (1, 512, 1), (1, 256, 2),
    (1, 128, 4), (1, 64, 8), (64, 1, 8),
  )  # fmt: skip
  return _compared('10 B', 2048, 'h100-80gb', ways)


def _batches() -> str:
  rows = []
  for batch in (128, 256, 512, 1024, 2048, 4096):
    result, _ = recommended('1 B', 'v5e', 256, batch)
    per_device = f'{result.tokens / result.layout.devices:,.0f}'
    rows.append((f'{batch}', per_device, *_row(result)))
  return table(('rows', 'tokens per device', *_COLUMNS), rows)


TABLES: dict[str, Callable[[], str]] = {
  'devices': _devices,
  'critical': _critical,
  'models': _models,
  'plans': _plans,
  'node': _node,
  'cluster': _cluster,
  'batches': _batches,
}


def refreshed(page: str) -> str:
  """The page with every table between its markers.

  Raises:
    ValueError: a table has no place.
  """
  return pages.refreshed(page, {name: make() for name, make in TABLES.items()})


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
  for name, make in TABLES.items():
    print(f'{name}\n\n{make()}\n')
  plans = {
    f'{name} on {devices} x {device}': plan.as_dict(
      recommended(name, device, devices)[0]
    )
    for device, devices in _MACHINES
    for name in _MODELS
  }
  print(json.dumps(plans))


if __name__ == '__main__':
  main()
