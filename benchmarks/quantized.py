"""What do weights and a cache of 8 bits save, and what do they cost?

Bytes and speed are those of the model of `shakespeare`, parameters random, as
`craft sample` keeps it: prompts of 128 characters are continued by 64 at
temperature 0.8, one text alone and sixteen at once, the variants in turns. With
--workdir, bits per byte of that run on its validation split, windows side by
side, each read through the cache as a prompt is, so that what is rounded there
counts.

  python benchmarks/quantized.py [--workdir runs/first] [--pairs 9]
"""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import measure

from craft_jax.config.load import load_config
from craft_jax.config.settings import Config
from craft_jax.data.prepare import open_corpus
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.evaluate import Evaluator
from craft_jax.inference.load import load_model
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.quantize import quantize
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.model.transformer import Decoder

_PROMPT, _CHARS, _BATCHES = 128, 64, (1, 16)
# Weights and cache of each; the first is what the others are compared with.
_VARIANTS = {
  'auto': ('auto', 'auto'),
  'int8 weights': ('int8', 'auto'),
  'float32 cache': ('auto', 'float32'),
  'bfloat16 cache': ('auto', 'bfloat16'),
  'int8 cache': ('auto', 'int8'),
  'int8 weights and cache': ('int8', 'int8'),
}


class _Cached(Decoder):
  """A model that reads a window as it reads a prompt: by `extend`."""

  def apply(self, params, x_BT, segment_BT=None, key=None):
    assert key is None
    B, T = x_BT.shape
    cache, length_B = self.init_cache(B, T), jnp.full(B, T)
    return self.extend(params, cache, x_BT, length_B, segment_BT)[1]


def main() -> None:
  """Prints a table, then one JSON object."""
  parser = measure.arguments(__doc__ or '', 9)
  parser.add_argument('--workdir', help='a trained run, for bits per byte')
  args = parser.parse_args()
  flags = [*args.set, 'data.path=none', 'model.precision=auto']
  rows = _sizes_and_speed(load_config('shakespeare', flags), args.pairs)
  if args.workdir:
    for name, (weights, cache) in _VARIANTS.items():
      found = _bits_per_byte(args, weights, cache)
      base = rows['auto'].setdefault('bits_per_byte', found)
      rows[name] |= {'bits_per_byte': found, 'more_bits': found - base}
  print(f'{(__doc__ or "").splitlines()[0]}\n{measure.hardware()}')
  for name, row in rows.items():
    line = f'{name:24}{_in_words(row)}'
    if args.workdir:
      bits, more = row['bits_per_byte'], row['more_bits']
      line += f'; {bits:.4f} bits per byte ({more:+.4f})'
    print(line)
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    args.pairs,
    rows,
    bars='speedup_1 at least',
  )


def _in_words(row: Mapping[str, Any]) -> str:
  speeds = [
    f'{row[f"chars_per_second_{batch}"]:7,.0f}/s at {batch} '
    f'({row[f"speedup_{batch}"]:.2f} x, {low:.2f}-{high:.2f})'
    for batch in _BATCHES
    for low, high in [row[f'speedup_quartiles_{batch}']]
  ]
  weights, cache = row['weight_bytes'] / 1e6, row['cache_bytes'] / 1e6
  return f'{weights:6.2f} MB + {cache:5.2f} MB a text; {", ".join(speeds)}'


def _sizes_and_speed(cfg: Config, pairs: int) -> dict[str, dict[str, Any]]:
  """Of each variant with parameters at random."""
  vocabulary = Vocabulary.from_text(
    ''.join(chr(ord('0') + i) for i in range(65))
  )
  platform = platform_of(jax.devices()[0])
  params = build(cfg.model, vocabulary.size, platform).init(jax.random.key(0))
  params = jax.tree.map(
    lambda leaf: leaf + 0.02 * jax.random.normal(jax.random.key(1), leaf.shape),
    params,
  )
  rows: dict[str, dict[str, Any]] = {}
  runs = {}
  for name, (weights, cache) in _VARIANTS.items():
    model = build(cfg.model, vocabulary.size, platform, cache)
    used = decoding_params(
      model, quantize(params) if weights == 'int8' else params
    )
    rows[name] = {'weight_bytes': _bytes(used)}
    runs[name] = functools.partial(_write, model, used, vocabulary)
    # Of one of several texts: a lone one may be kept otherwise (`auto`).
    rows[name]['cache_bytes'] = (
      _bytes(model.init_cache(2, cfg.model.context)) // 2
    )
  for batch in _BATCHES:
    seconds = measure.alternate(
      {name: functools.partial(run, batch) for name, run in runs.items()}, pairs
    )
    for name, times in seconds.items():
      rows[name] |= _speed(times, seconds['auto'], batch)
  return rows


def _speed(
  times: Sequence[float], base: Sequence[float], batch: int
) -> dict[str, Any]:
  ratios = [of_base / own for own, of_base in zip(times, base, strict=True)]
  rate = batch * _CHARS / statistics.median(times)
  return {
    f'chars_per_second_{batch}': rate,
    f'speedup_{batch}': statistics.median(ratios),
    f'speedup_quartiles_{batch}': measure.quartiles(ratios),
  }


def _bytes(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _write(
  model: Decoder, params: Any, vocabulary: Vocabulary, batch: int
) -> None:
  prompt = vocabulary.encode('0123456789' * _PROMPT)[:_PROMPT]
  settings = SampleSettings(0.8, end=False)
  pieces = generate(
    model, params, vocabulary, [prompt] * batch, settings, 0, _CHARS
  )
  written = sum(len(piece.text) for part in pieces for piece in part)
  assert written == batch * _CHARS, written


def _bits_per_byte(args: argparse.Namespace, weights: str, cache: str) -> float:
  """Of the run on its validation split, read through the cache."""
  trained = load_model(args.workdir, weights=weights)
  cfg, vocabulary = trained.cfg, trained.vocabulary
  if args.data:
    data = dataclasses.replace(cfg.data, path=args.data)
    cfg = dataclasses.replace(cfg, data=data)
  corpus = open_corpus(cfg, vocabulary)
  model = _Cached(cfg.model, vocabulary.size, trained.model.policy, cache)
  mesh = mesh_lib.data_mesh(cfg.eval.batch_size)
  figures = Evaluator(cfg, model, vocabulary, mesh)(
    mesh_lib.put_batch(trained.params, mesh_lib.replicated(mesh)),
    next(split for split in corpus.splits if split.name == 'valid'),
    stride=0,
  )
  return float(figures['val_bpb'])


if __name__ == '__main__':
  main()
