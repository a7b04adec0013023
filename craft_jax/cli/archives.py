"""Flags, model loading and output shared by compress and decompress."""

import argparse
import os
import time
from typing import Any

from craft_jax.cli import trained_flags
from craft_jax.errors import UserError
from craft_jax.runtime import files, xla_flags

SUFFIX = '.craft'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of both commands."""
  trained_flags.add_arguments(parser)
  parser.add_argument(
    '--force', action='store_true', help='overwrite the output'
  )
  parser.add_argument(
    '--quiet', action='store_true', help='print results only, no progress'
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print the results as one JSON object, last on standard output',
  )


def check_output(output: str, force: bool, source: str) -> None:
  """Checks that the output can be written, before hours of work.

  Raises:
    UserError: the output exists and `force` is not set, it is a folder, its
      folder does not exist, or it is the input file `source`.
  """
  files.check_output(output, '--output', source)
  if os.path.isfile(output) and not force and not files.is_open_stream(output):
    raise UserError(
      f'{output} exists; give another --output, or --force to overwrite it'
    )


def write(output: str, data: bytes, force: bool, source: str) -> None:
  """Writes a file atomically, after the checks of `check_output`."""
  check_output(output, force, source)  # it may have been created meanwhile
  files.write_atomic(output, data)


def load_model(args: argparse.Namespace) -> Any:
  """Loads the model of the flags, with deterministic kernels."""
  xla_flags.repeat_bits()

  from craft_jax.data.sources import cache_folder
  from craft_jax.inference import load as load_lib
  from craft_jax.runtime import compilation_cache

  found = load_lib.load_model(args.workdir, args.step, ema=not args.no_ema)
  # With the cache, decompression runs the same compiled program.
  compilation_cache.use(cache_folder(found.cfg.data))
  return found


class Ticks:
  """A context manager with a progress bar, which is called to advance it."""

  def __init__(self, size: int, quiet: bool):
    """Creates the bar for a file of `size` bytes."""
    from craft_jax.runs.progress import Progress

    self._size = size
    self._bar = Progress(size, quiet=quiet)
    self._began = time.perf_counter()
    self._seen: list[tuple[float, float]] = []  # bytes, seconds

  def __enter__(self) -> 'Ticks':
    self._bar.__enter__()
    return self

  def __exit__(self, *error: Any) -> None:
    self._bar.__exit__(*error)

  def __call__(self, done: int, total: int) -> None:
    """Advances the bar to `done` of `total` steps."""
    here = self._size * done / total
    self._seen.append((here, time.perf_counter() - self._began))
    self._bar.update(int(here), {})

  def figures(self) -> dict[str, float | None]:
    """Time, and throughput without the first dispatch, which compiles."""
    seconds = time.perf_counter() - self._began
    speed = None
    if len(self._seen) > 1:
      (first, began), (last, ended) = self._seen[0], self._seen[-1]
      speed = (last - first) / (ended - began)
    return {'seconds': seconds, 'bytes_per_second': speed}


def took(figures: dict[str, Any]) -> str:
  """Formats the time, `1.2 s`, and the speed if it is known."""
  speed = figures['bytes_per_second']
  rest = '' if speed is None else f', {speed:,.0f} bytes/s once compiled'
  return f'{figures["seconds"]:.1f} s{rest}'
