"""How well do compressors predict the text that a model is evaluated on?

Bits per byte of a config's validation split (or `--split test`), in two ways.
`alone`: the compressed size of the split. `after training`: the compressed size
of training text and split together less that of the training text. The second
is the fair one beside a model, which has read the training text too. All of
them learn from the split as they go, which a model with static weights does
not: `docs/evaluation.md`.

xz and bzip2 are Python's own at their best settings (-9e, -9); bzip2 forgets
after 900 kB. PPMd (variant I, 512 MB of memory) is `pip install pyppmd`, and
left out without it. Documents follow each other with nothing between. Sizes are
the same on every machine.

  python benchmarks/compressors.py [--config base] [--data FILE] [--split test]
"""

import argparse
import bz2
import functools
import lzma
import pathlib
import re
import sys
from collections.abc import Callable

import data
import measure

from craft_jax.data.corpus import Corpus, Split
from craft_jax.data.prepare import open_corpus

_ORDERS = (6, 16)
_MEMORY = 1 << 29  # bytes; a text of 10 MB touches less than half

Compress = Callable[[bytes], bytes]


def compressors() -> dict[str, Compress]:
  """Each by its name and level; a line says so if PPMd is not installed."""
  found: dict[str, Compress] = {
    'xz -9e': functools.partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME),
    'bzip2 -9': functools.partial(bz2.compress, compresslevel=9),
  }
  try:
    import pyppmd
  except ImportError:
    print('PPMd is left out: pip install pyppmd', file=sys.stderr)
    return found
  return found | {
    f'PPMd, order {order}': functools.partial(
      pyppmd.compress, max_order=order, mem_size=_MEMORY, variant='I'
    )
    for order in _ORDERS
  }


def text_of(corpus: Corpus, split: Split) -> bytes:
  """The bytes of a split, without what separates documents."""
  text = corpus.vocabulary.decode_bytes(split.tokens)
  assert len(text) == split.num_bytes, (len(text), split.num_bytes)
  return text


def figures(
  compress: Compress, train: bytes, text: bytes
) -> dict[str, float | int | None]:
  """Sizes in bytes and bits per byte, alone and after the training text."""
  alone = len(compress(text))
  after = len(compress(train + text)) - len(compress(train))
  return {
    'alone_bytes': alone,
    'after_training_bytes': after,
    'alone': 8 * alone / len(text),
    'after_training': 8 * after / len(text),
    'bar': None,
  }


def _arguments() -> argparse.Namespace:
  parser = measure.arguments(__doc__ or '')
  parser.add_argument(
    '--config', default='base', help='file or name (default: base)'
  )
  parser.add_argument('--split', choices=('valid', 'test'), default='valid')
  return parser.parse_args()


def _case(args: argparse.Namespace) -> str:
  """`shakespeare-cpu`, or `dickens-test`: a name of a result."""
  stem = pathlib.Path(args.config.partition(':')[0]).stem
  words = re.findall(r'[a-z0-9]+', stem.lower())
  return '-'.join([*words, *(['test'] if args.split == 'test' else [])])


def main() -> None:
  """Prints a table, then one JSON object; no bars."""
  args = _arguments()
  corpus = open_corpus(data.config_of(args))
  split = corpus.test if args.split == 'test' else corpus.valid
  if split is None:
    raise SystemExit('compressors: no test split; set data.test_fraction')
  if corpus.withheld:
    raise SystemExit(f'compressors: no bits per byte: {corpus.withheld}')
  train, text = text_of(corpus, corpus.train), text_of(corpus, split)
  print(corpus.summary)
  print(f'{split.name}: {len(text):,} bytes after {len(train):,} of training')
  print(f'{"bits per byte":18}{"alone":>10}{"after training":>18}')
  rows = {}
  for name, compress in compressors().items():
    row = rows[name] = figures(compress, train, text)
    print(f'{name:18}{row["alone"]:10.4f}{row["after_training"]:18.4f}')
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    1,
    rows,
    case=_case(args),
    bars='after_training at most',
    split=split.name,
    split_bytes=len(text),
    train_bytes=len(train),
    fingerprint=corpus.fingerprint,
  )


if __name__ == '__main__':
  main()
