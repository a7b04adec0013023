"""Decompress a file that `craft compress` has compressed.

This needs the model that compressed it, the same kind of machine and the same
version of JAX. If one of these differs, or the archive is damaged, nothing is
written. The archive is kept.

examples:
  craft decompress notes.txt.craft --workdir=runs/first --output=again.txt
  craft decompress notes.txt.craft --workdir=runs/first --force --json
"""

import argparse

from craft_jax.cli import archives
from craft_jax.errors import UserError
from craft_jax.runtime import strict_json

SUMMARY = 'decompress a file'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft decompress`."""
  parser.add_argument('file', metavar='FILE', help='the archive')
  parser.add_argument(
    '--output',
    metavar='FILE',
    help=f'the file to write (default: the archive without {archives.SUFFIX})',
  )
  archives.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Decompresses, verifies and writes a file."""
  output = args.output or args.file.removesuffix(archives.SUFFIX)
  if output == args.file:
    raise UserError(
      f'{args.file} does not end in {archives.SUFFIX}; give --output'
    )
  archives.check_output(output, args.force, args.file)
  with open(args.file, 'rb') as f:
    whole = f.read()

  from craft_jax.inference.compress import archive, pack

  opened = archive.unpack(whole, args.file)
  trained = archives.load_model(args)
  with archives.Ticks(opened.size, args.quiet) as tick:
    data = pack.decompress(opened, trained, args.file, tick)
  archives.write(output, data, args.force, args.file)

  figures = {
    'input': args.file,
    'output': output,
    'step': trained.meta.step,
    'bytes': len(data),
    'archive_bytes': len(whole),
    'sha256': opened.sha256.hex(),
    **tick.figures(),
  }
  print(f'{output}: {len(data):,} bytes, verified')
  print(f'time      {archives.took(figures)}')
  if args.json:
    print(strict_json.dumps(figures))
  return 0
