"""Compress a file losslessly with a trained model.

The better the model predicts the text, the smaller the archive. Any file can
be compressed. Decompression needs the same model, the same kind of machine and
the same version of JAX. The input file is kept.

examples:
  craft compress notes.txt --workdir=runs/first
  craft compress notes.txt --workdir=runs/first --output=small --json
"""

import argparse
import lzma
from typing import Any

from craft_jax.cli import archives
from craft_jax.errors import UserError
from craft_jax.runtime import strict_json

SUMMARY = 'compress a file with a trained model'
_MOST_STREAMS = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft compress`."""
  parser.add_argument('file', metavar='FILE', help='the file to compress')
  parser.add_argument(
    '--output',
    metavar='FILE',
    help=f'the archive (default: FILE{archives.SUFFIX})',
  )
  parser.add_argument(
    '--streams',
    type=int,
    metavar='N',
    help='parts coded in parallel: more is faster, fewer is smaller '
    '(default: by the size, 1 to 64)',
  )
  archives.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Compresses a file and prints the sizes."""
  output = args.output or args.file + archives.SUFFIX
  if args.streams is not None and not 1 <= args.streams <= _MOST_STREAMS:
    raise UserError(
      f'--streams={args.streams} must be from 1 to {_MOST_STREAMS}'
    )
  archives.check_output(output, args.force, args.file)
  with open(args.file, 'rb') as f:
    data = f.read()

  from craft_jax.inference.compress import archive, pack

  trained = archives.load_model(args)
  with archives.Ticks(len(data), args.quiet) as tick:
    packed = pack.compress(data, trained, args.streams, tick)
  whole = archive.pack(packed.archive)
  archives.write(output, whole, args.force, args.file)

  xz = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
  figures = {
    'input': args.file,
    'output': output,
    'step': trained.meta.step,
    'bytes': len(data),
    'archive_bytes': len(whole),
    'bits_per_byte': 8 * len(whole) / len(data) if data else None,
    'stored': packed.archive.stored is not None,
    'coded_bytes': packed.coded_bytes,
    'ideal_bytes': packed.ideal_bits / 8,
    'streams': packed.streams,
    'xz_bytes': xz,
    'xz_ratio': xz / len(whole),
    **tick.figures(),
  }
  print(_text(figures))
  if args.json:
    print(strict_json.dumps(figures))
  return 0


def _text(figures: dict[str, Any]) -> str:
  """Formats the results."""
  each = figures['bits_per_byte']
  rate = '' if each is None else f', {each:.3f} bits per byte'
  stored = ', stored uncompressed' if figures['stored'] else ''
  return '\n'.join(
    [
      f'{figures["output"]}: {figures["archive_bytes"]:,} bytes of '
      f'{figures["bytes"]:,}{rate}{stored}',
      f'code      {figures["coded_bytes"]:,} bytes in {figures["streams"]} '
      f'stream(s); entropy under the model {figures["ideal_bytes"]:,.1f}',
      f'xz -9e    {figures["xz_bytes"]:,} bytes, {figures["xz_ratio"]:.3f} '
      'times the archive',
      f'time      {archives.took(figures)}',
    ]
  )
