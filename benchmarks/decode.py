"""How fast is text written, beside PyTorch with and without a cache?

One turn continues prompts of 128 characters by 64, prefill included, by top-k
50 at temperature 0.8. Craft calls `generate` as `craft sample` does; the peers
are PyTorch reading its whole window for every character (nanoGPT's way) and
GPT-2 of `transformers` with its cache. Parameters are random: speed does not
depend on them. The peer without a cache, which reads everything again, is left
out beyond 16 texts at once: it would only take longer. `of copy` is what a step
has to read, parameters and cache, over its time, as a share of the bytes that
an addition moves per second.

  python benchmarks/decode.py [--size cpu|gpu] [--batches 1,16,64,256]
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence

import measure
import workers

from craft_jax.config.load import load_config

_SIZES = {'cpu': 'shakespeare_cpu', 'gpu': 'shakespeare'}
_PROMPT, _CHARS = {'cpu': 32, 'gpu': 128}, {'cpu': 32, 'gpu': 64}
_MOST_WITHOUT_CACHE = 16  # texts at once
# Least ratios wanted, by batch.
_BARS = {
  'torch, no cache': {1: 8.0, 16: 25.0},
  'transformers': {1: 3.5, 16: 3.5},
}


_LEAST = {1: 5000}  # characters/s wanted on an accelerator at 10 M, by batch


def main() -> None:
  """Prints a table per batch, then one JSON object."""
  parser = measure.arguments(__doc__ or '', 5)
  parser.add_argument('--size', choices=_SIZES, default='gpu')
  parser.add_argument('--batches', default='1,16,64,256')
  parser.add_argument('--only', help='peers: names, or parts of them')
  args = parser.parse_args()
  rows: dict[str, dict[str, object]] = {}
  print(f'Writing text: size {args.size}; {measure.hardware()}')
  for batch in map(int, args.batches.split(',')):
    rows |= _of_batch(args, batch)
  if not measure.device_slug().startswith('cpu') and args.size == 'gpu':
    for batch, least in _LEAST.items():
      if row := rows.get(f'craft, batch {batch}'):
        row['least_chars_per_second'] = least
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    args.pairs,
    rows,
    case=args.size,
    bars='speedup at least',
    command=measure.command(),
  )


def _of_batch(
  args: argparse.Namespace, batch: int
) -> dict[str, dict[str, object]]:
  name, chars = _SIZES[args.size], _CHARS[args.size]
  flags = ['data.path=none', 'model.precision=auto', *args.set]
  cfg = load_config(name, flags)
  shape = json.dumps(
    {
      'vocabulary_size': 65,
      **{
        key: getattr(cfg.model, key)
        for key in ('context', 'width', 'depth', 'num_heads')
      },
    }
  )
  sizes = [f'--batch={batch}', f'--prompt={_PROMPT[args.size]}',
           f'--chars={chars}']  # fmt: skip
  torch = ('torch_decode', [shape, *sizes])
  commands = {
    'craft': ('craft_decode', [name, *flags, *sizes]),
    'torch, no cache': torch,
    'torch, no cache, bfloat16': (torch[0], [*torch[1], '--bfloat16']),
    'transformers': (torch[0], [*torch[1], '--transformers']),
    'transformers, bfloat16': (
      torch[0],
      [*torch[1], '--transformers', '--bfloat16'],
    ),
  }
  wanted = {'craft', *measure.chosen(commands, args.only)}
  if batch > _MOST_WITHOUT_CACHE:
    commands = {v: c for v, c in commands.items() if 'no cache' not in v}
  commands = {v: c for v, c in commands.items() if v in wanted}
  with workers.opened(commands) as found:
    seconds = measure.alternate(found, args.pairs)
    facts = found['craft'].facts
  return _rows(seconds, batch, chars, facts)


def _rows(
  seconds: Mapping[str, Sequence[float]],
  batch: int,
  chars: int,
  facts: Mapping[str, float],
) -> dict[str, dict[str, object]]:
  print(
    f'\nbatch {batch:<20}{"chars/s":>9}{"ms/char":>9}{"spread":>8}'
    f'{"of copy":>9}{"craft is x":>12}{"bar":>6}'
  )
  rows = {}
  for variant, times in seconds.items():
    median = statistics.median(times)
    pairs = zip(times, seconds['craft'], strict=True)
    row: dict[str, object] = {
      'chars_per_second': batch * chars / median,
      'seconds_per_char': median / chars,
      'spread': measure.spread(times),
      'speedup': statistics.median(a / b for a, b in pairs),
      'bar': _BARS.get(variant, {}).get(batch),
    }
    share = ''
    if variant == 'craft':
      moved = facts['bytes_per_step'] * chars / median
      row['share_of_copy'] = moved / facts['copied_per_second']
      share = f'{row["share_of_copy"]:.1%}'
    print(
      f'{variant:26}{row["chars_per_second"]:9,.0f}'
      f'{1e3 * median / chars:9.3f}{row["spread"]:8.1%}{share:>9}'
      f'{row["speedup"]:12.2f}{row["bar"] or "":>6}'
    )
    rows[f'{variant}, batch {batch}'] = row
  return rows


if __name__ == '__main__':
  main()
