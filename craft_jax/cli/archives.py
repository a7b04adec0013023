"""What `craft compress` and `craft decompress` share: flags, model, output."""

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
    '--quiet', action='store_true', help='no progress, results only'
  )
  parser.add_argument(
    '--json',
    action='store_true',
    help='print the figures as one JSON object, last on standard output',
  )


def check_output(output: str, force: bool, source: str) -> None:
  """Looks before hours of work, not after.

  Raises:
    UserError: the output exists and may not be overwritten, is a folder, has
      no folder to be in, or is `source`, which is read.
  """
  files.check_output(output, '--output', source)
  if os.path.isfile(output) and not force and not files.is_open_stream(output):
    raise UserError(
      f'{output} exists; give another --output, or --force to overwrite it'
    )


def write(output: str, data: bytes, force: bool, source: str) -> None:
  """Writes a file whole or not at all; raises as `check_output`."""
  check_output(output, force, source)  # it may have come meanwhile
  files.write_atomic(output, data)


def load_model(args: argparse.Namespace) -> Any:
  """The `Trained` of the flags, on a device that repeats its numbers."""
  xla_flags.repeat_bits()

  from craft_jax.data.sources import cache_folder
  from craft_jax.inference import load as load_lib
  from craft_jax.runtime import compilation_cache

  found = load_lib.load_model(args.workdir, args.step, ema=not args.no_ema)
  # Decompressing then starts with the very program that compressed.
  compilation_cache.use(cache_folder(found.cfg.data))
  return found


class Ticks:
  """A bar on standard error, moved by calls; a context."""

  def __init__(self, size: int, quiet: bool):
    """Of a file of `size` bytes."""
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
    """Says that `done` of `total` steps are done."""
    here = self._size * done / total
    self._seen.append((here, time.perf_counter() - self._began))
    self._bar.update(int(here), {})

  def figures(self) -> dict[str, float | None]:
    """The first dispatch compiles, so the speed is that of the others."""
    seconds = time.perf_counter() - self._began
    speed = None
    if len(self._seen) > 1:
      (first, began), (last, ended) = self._seen[0], self._seen[-1]
      speed = (last - first) / (ended - began)
    return {'seconds': seconds, 'bytes_per_second': speed}


def took(figures: dict[str, Any]) -> str:
  """`1.2 s` and, if it is known, the speed."""
  speed = figures['bytes_per_second']
  rest = '' if speed is None else f', {speed:,.0f} bytes/s once compiled'
  return f'{figures["seconds"]:.1f} s{rest}'
