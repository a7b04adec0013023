"""What the benchmarks here share: alternating times, and their report."""

import argparse
import functools
import json
import math
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from craft_jax.model.sharding.mesh import usable_cores

_Result = TypeVar('_Result')
# Words of a processor's or device's name that tell it from no other.
_MAKERS = re.compile(
  r'\((r|tm|c)\)|@.*|\b\d+-core\b|'
  r'\b(amd|intel|nvidia|tpu|cpu|core|processor)\b'
)


def arguments(doc: str, pairs: int = 0) -> argparse.ArgumentParser:
  """The flags that every script has.

  Args:
    doc: docstring of the script.
    pairs: default of `--pairs`; without it there is no such flag.
  """
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  if pairs:
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


def chosen(variants: Mapping[str, _Result], only: str | None) -> set[str]:
  """The names that `--only` asks for; all if it does not.

  Args:
    variants: by name.
    only: names, or parts of names, with commas between.
  """
  found: set[str] = set()
  for word in only.split(',') if only else ['']:
    parts = [name for name in variants if word in name]
    found.update([word] if word in variants else parts)
  return found


def in_turns(
  variants: Mapping[str, Callable[[], _Result]], rounds: int
) -> dict[str, list[_Result]]:
  """What each variant gives, one after the other, `rounds` times.

  The order turns round every time, so that a drift of the machine meets all
  alike. The first round is not counted.
  """
  results: dict[str, list[_Result]] = {name: [] for name in variants}
  for i in range(rounds + 1):
    names = list(variants)
    for name in names if i % 2 else reversed(names):
      result = variants[name]()
      if i:
        results[name].append(result)
  return results


def alternate(
  variants: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of each variant, `in_turns`."""
  timed = {
    name: functools.partial(seconds_of, run) for name, run in variants.items()
  }
  return in_turns(timed, rounds)


def seconds_of(run: Callable[[], Any]) -> float:
  """How long a call takes."""
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def lengthened(
  run: Callable[[], Any], least: float
) -> tuple[Callable[[], None], int]:
  """`run` as often as takes about `least` seconds, and how often that is.

  It is run twice for that: the first call may compile.
  """
  run()
  times = math.ceil(least / seconds_of(run))

  def longer() -> None:
    for _ in range(times):
      run()

  return longer, times


def report(
  question: str,
  seconds: Mapping[str, Sequence[float]],
  base: str | Mapping[str, str],
  per: int = 1,
  bars: Mapping[str, float] | None = None,
  unit: str = 'ms/step',
  **more: Any,
) -> None:
  """Prints a table of medians and ratios, then one JSON object.

  A ratio is the median of the rounds' ratios: what drifts from one round to
  the next divides out. Its quartiles tell how sure it is.

  Args:
    question: what is measured.
    seconds: of each variant.
    base: the variant the others are divided by, or of each its own.
    per: steps in each time.
    bars: greatest ratio wanted of a variant.
    unit: of the times, for the table.
    **more: see `conclude`.
  """
  milliseconds = {
    name: [1e3 * s / per for s in times] for name, times in seconds.items()
  }
  _table(
    question,
    'milliseconds',
    unit,
    milliseconds,
    dict.fromkeys(seconds, base) if isinstance(base, str) else base,
    bars or {},
    'ratio at most',
    jax.device_count(),
    **more,
  )


def report_rates(
  question: str,
  rates: Mapping[str, Sequence[float]],
  bases: Mapping[str, str],
  unit: str,
  bars: Mapping[str, float] | None = None,
  devices: int | None = None,
  **more: Any,
) -> None:
  """As `report`, of rates: more is better.

  Args:
    question: what is measured.
    rates: of each variant, per second.
    bases: of each variant, the one it is divided by.
    unit: of the rates, for the table.
    bars: least ratio wanted of a variant.
    devices: that were used, if not by this process.
    **more: see `conclude`.
  """
  _table(
    question,
    'rate',
    unit,
    rates,
    bases,
    bars or {},
    'ratio at least',
    devices or jax.device_count(),
    **more,
  )


def _table(
  question: str,
  key: str,
  unit: str,
  values: Mapping[str, Sequence[float]],
  bases: Mapping[str, str],
  bars: Mapping[str, float],
  meaning: str,
  devices: int,
  **more: Any,
) -> None:
  """Prints values, their ratios and the JSON object, where they are `key`."""
  _print_head(question, devices)
  head = f'{unit:>13}{"spread":>8}{"ratio":>10}{"quartiles":>20}{"bar":>8}'
  print(f'{"variant":28}{head}')
  rows = {}
  for name, ours in values.items():
    pairs = zip(ours, values[bases[name]], strict=True)
    ratios = [value / of_base for value, of_base in pairs]
    median, ratio = statistics.median(ours), statistics.median(ratios)
    low, high = quartiles(ratios)
    rows[name] = {
      key: median,
      'spread': spread(ours),
      'ratio': ratio,
      'ratio_quartiles': [low, high],
      'bar': bars.get(name),
    }
    digits = 2 if median < 1000 else 0
    bar = f'{bars[name]:8g}' if name in bars else ''
    print(
      f'{name:28}{median:13,.{digits}f}{spread(ours):8.1%}{ratio:10.3f}'
      f'{f"{low:.3f}-{high:.3f}":>20}{bar}'
    )
  conclude(
    question, _rounds(values), rows, bars=meaning, devices=devices, **more
  )


def report_seconds(
  question: str,
  parts: Mapping[str, Sequence[Mapping[str, float]]],
  bars: Mapping[str, float],
  devices: int,
) -> None:
  """Prints a table of medians and their parts, then one JSON object.

  Args:
    question: what is measured.
    parts: seconds of the parts of each round, for each variant.
    bars: most seconds wanted of a variant.
    devices: that were used.
  """
  _print_head(question, devices)
  names = list(next(iter(parts.values()))[0])
  head = ''.join(f'{name:>12}' for name in names)
  print(f'{"variant":12}{"seconds":>9}{"quartiles":>14}{"bar":>8}{head}')
  rows = {}
  for variant, rounds in parts.items():
    seconds = [sum(of_round.values()) for of_round in rounds]
    median, (low, high) = statistics.median(seconds), quartiles(seconds)
    medians = {
      name: statistics.median(of_round[name] for of_round in rounds)
      for name in names
    }
    rows[variant] = {
      'seconds': median,
      'seconds_quartiles': [low, high],
      'bar': bars.get(variant),
      'parts': medians,
    }
    bar = f'{bars[variant]:8.1f}' if variant in bars else ' ' * 8
    columns = ''.join(f'{medians[name]:12.2f}' for name in names)
    print(
      f'{variant:12}{median:9.2f}{f"{low:.2f}-{high:.2f}":>14}{bar}{columns}'
    )
  conclude(
    question, _rounds(parts), rows, bars='seconds at most', devices=devices
  )


def _rounds(variants: Mapping[str, Sequence[Any]]) -> int:
  return len(next(iter(variants.values())))


def _print_head(question: str, devices: int) -> None:
  print(question)
  print(f'{hardware()}; jax {jax.__version__}; {devices} device(s)')


def conclude(
  question: str,
  rounds: int,
  variants: Mapping[str, Mapping[str, Any]],
  **more: Any,
) -> None:
  """Prints the JSON object that every script ends with.

  `craft bench --save` keeps it under its `device`, and `craft bench` shows of
  each variant what `bars` names (`ratio at most` if it is left out), beside
  its `bar`.

  Args:
    question: what is measured.
    rounds: how often, the first not counted.
    variants: JSON values of each.
    **more: further JSON values; `devices` if not all of this process's; `case`
      if a script keeps several results.
  """
  print(
    json.dumps(
      {
        'question': question,
        'device': device_slug(),
        'hardware': hardware(),
        'jax': jax.__version__,
        'devices': jax.device_count(),
        'rounds': rounds,
      }
      | more
      | {'variants': variants}
    )
  )


def command() -> list[str]:
  """The command line of a script; of files their names, not where they lie."""
  words = []
  for word in sys.argv[1:]:
    flag, is_flag, value = word.partition('=')
    path, flag = (value, f'{flag}=') if is_flag else (word, '')
    name = pathlib.Path(path).name
    words.append(f'{flag}{name}' if os.path.isfile(path) else word)
  return words


def quartiles(values: Sequence[float]) -> tuple[float, float]:
  """The first and the third."""
  if len(values) < 2:
    return values[0], values[0]
  quarters = statistics.quantiles(values, n=4)
  return quarters[0], quarters[2]


def spread(values: Sequence[float]) -> float:
  """From the first quartile to the third, as a share of the median."""
  low, high = quartiles(values)
  return (high - low) / statistics.median(values)


def hardware() -> str:
  """The device, or the processor and how many of its cores may be used."""
  platform_name, count, name = _device()
  if platform_name != 'cpu':
    return f'{count} x {name}'
  return f'{count} cores of {name}'


def device_slug() -> str:
  """`hardware` as the name of a folder: `cpu-2-epyc`, `gpu-1-h200`."""
  return slug(*_device())


def slug(kind: str, count: int, name: str) -> str:
  """`gpu-1-h200` of `gpu`, 1 and `NVIDIA H200`: a maker tells nothing."""
  words = re.findall(r'[a-z0-9]+', _MAKERS.sub(' ', name.lower()))
  return '-'.join([kind, str(count), *words])


def _device() -> tuple[str, int, str]:
  """Platform, number of devices (of usable cores on a CPU) and their name."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    return device.platform, jax.device_count(), device.device_kind
  name = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    lines = info.read_text().splitlines()
    models = [line for line in lines if line.startswith('model name')]
    name = models[0].split(':', 1)[1].strip() if models else name
  return 'cpu', usable_cores(), name


if __name__ == '__main__':
  print(device_slug())  # `craft bench` asks, which does not start JAX
