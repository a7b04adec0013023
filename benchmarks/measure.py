"""What the benchmarks here share: alternating times, and their report."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def arguments(doc: str, pairs: int) -> argparse.ArgumentParser:
  """The flags that every script has.

  Args:
    doc: docstring of the script.
    pairs: default of `--pairs`.
  """
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--pairs', type=int, default=pairs, help=f'rounds (default: {pairs})'
  )
  parser.add_argument(
    '--data', help='the text, if it is not to be downloaded by the config'
  )
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='a setting, e.g. model.width=64',
  )
  return parser


def overrides(args: argparse.Namespace, *more: str) -> list[str]:
  """Settings of the flags, as `load_config` takes them."""
  data = []
  if args.data:
    data = [f'data.path={args.data}']
  return [*more, *data, *args.set]


def alternate(
  variants: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of each variant, one after the other, `rounds` times.

  The order turns round every time, so that a drift of the machine meets all
  alike. The first round is not counted.
  """
  seconds: dict[str, list[float]] = {name: [] for name in variants}
  for i in range(rounds + 1):
    names = list(variants)
    for name in names if i % 2 else reversed(names):
      begin = time.perf_counter()
      variants[name]()
      if i:
        seconds[name].append(time.perf_counter() - begin)
  return seconds


def report(
  question: str,
  seconds: Mapping[str, Sequence[float]],
  base: str,
  per: int = 1,
  bars: Mapping[str, float] | None = None,
) -> None:
  """Prints a table of medians and their ratios, then one JSON object.

  Args:
    question: what is measured.
    seconds: of each variant.
    base: the variant the others are divided by.
    per: steps in each time.
    bars: greatest ratio wanted of a variant.
  """
  bars = bars or {}
  medians = {name: statistics.median(s) for name, s in seconds.items()}
  print(question)
  print(f'{hardware()}; jax {jax.__version__}; {jax.device_count()} device(s)')
  print(f'{"variant":28}{"ms/step":>10}{"spread":>9}{"ratio":>8}{"bar":>8}')
  rows = {}
  for name, median in medians.items():
    low, high = _quartiles(seconds[name])
    ratio = median / medians[base]
    rows[name] = {
      'milliseconds': 1e3 * median / per,
      'spread': (high - low) / median,
      'ratio': ratio,
      'bar': bars.get(name),
    }
    bar = f'{bars[name]:8.3f}' if name in bars else ''
    print(
      f'{name:28}{1e3 * median / per:10.2f}{(high - low) / median:9.1%}'
      f'{ratio:8.3f}{bar}'
    )
  print(
    json.dumps(
      {
        'question': question,
        'hardware': hardware(),
        'jax': jax.__version__,
        'devices': jax.device_count(),
        'rounds': len(next(iter(seconds.values()))),
        'variants': rows,
      }
    )
  )


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
  if len(values) < 2:
    return values[0], values[0]
  quarters = statistics.quantiles(values, n=4)
  return quarters[0], quarters[2]


def hardware() -> str:
  """The device, or the processor and how many of its cores may be used."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    return f'{jax.device_count()} x {device.device_kind}'
  name = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    lines = info.read_text().splitlines()
    models = [line for line in lines if line.startswith('model name')]
    name = models[0].split(':', 1)[1].strip() if models else name
  return f'{len(os.sched_getaffinity(0))} cores of {name}'
