"""How fast is training, beside the same model in PyTorch?

Each variant runs in a process of its own and all are asked in turn for a second
or so of training: batches, forward, backward, clipping, optimizer. Craft runs
the program of `craft train`; PyTorch (peers/torch_model.py, a test compares its
logits with ours) runs eager and compiled, in float32 and under bfloat16
autocast, with fused attention and fused AdamW, and so does GPT-2 of
`transformers`. What a process does first (compilation, the first calls) is told
apart and not counted. `of products` is the rate of the model's operations over
that of large products, measured in the same process.

`--sweep` leaves the peers out and compares meshes of all devices, or how many
steps one call to the device does.

  python benchmarks/train_step.py [--size cpu|gpu|124m] [--block gpt2|craft]
  python benchmarks/train_step.py --sweep mesh|dispatch [--size cpu|gpu|124m]
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence

import measure
import numpy as np
import workers

from craft_jax.config.load import load_config
from craft_jax.config.settings import Config
from craft_jax.data.prepare import open_corpus

# Sizes of nanoGPT's two configs for tinyshakespeare, and of GPT-2.
_SIZES = {
  'cpu': ('shakespeare_cpu', ['train.batch_size=12'], 40),
  'gpu': ('shakespeare', ['train.batch_size=16', 'model.dropout=0.0'], 1),
  '124m': (
    'shakespeare',
    ['model.width=768', 'model.depth=12', 'model.num_heads=12',
     'model.context=1024', 'train.batch_size=32', 'model.dropout=0.0'],
    5,
  ),
}  # fmt: skip
_GPT2 = [
  'model.norm=layer', 'model.mlp=gelu', 'model.position=learned',
  'model.qk_norm=False', 'model.logit_cap=0.0', 'model.tied=True',
  'model.zero_init=False',
]  # fmt: skip
_ADAMW = ['optim.name=adamw', 'train.ema=0.0']
_AXES = ('data', 'fsdp', 'tensor')
_SWEEPS = {
  'mesh': {
    axis: [f'mesh.{name}={-1 if name == axis else 1}' for name in _AXES]
    for axis in _AXES
  },
  'dispatch': {
    f'{steps} a dispatch': [f'train.steps_per_call={steps}']
    for steps in (1, 4, 16, 64)
  },
}
# The peers compared with, and how many times as fast as the fastest of them:
# on a CPU those in float32.
_BARS = {'cpu': ('float32', 2.5), 'other': ('any', 1.3)}
# Share of the rate of large products, by size, on an accelerator.
_SHARES = {'124m': 0.5}


def main() -> None:
  """Prints the table, then one JSON object."""
  args = _arguments()
  name, size, steps = _SIZES[args.size]
  steps = args.steps or steps
  flags = measure.overrides(args, *size)
  block = _GPT2 if args.block == 'gpt2' else []
  if args.sweep:
    _sweep(args, [name, *flags, *block, *_ADAMW], steps)
  else:
    _compare(args, name, flags, block, steps)


def _sweep(args: argparse.Namespace, words: Sequence[str], steps: int) -> None:
  """One setting, several values, no peers."""
  commands = {
    variant: ('craft_train', [*words, *more, f'--steps={steps}'])
    for variant, more in _SWEEPS[args.sweep].items()
  }
  with workers.opened(commands) as found:
    seconds = measure.alternate(found, args.pairs)
  measure.report(
    f'What does {args.sweep} change in a step, size {args.size}?',
    seconds,
    next(iter(seconds)),
    steps,
    case=f'{args.sweep}-{args.size}',
    command=measure.command(),
  )


def _compare(
  args: argparse.Namespace,
  name: str,
  flags: Sequence[str],
  block: Sequence[str],
  steps: int,
) -> None:
  """Craft beside its peers."""
  cfg = load_config(name, [*flags, *block])
  corpus = open_corpus(cfg)
  with tempfile.NamedTemporaryFile(suffix='.npy') as tokens:
    np.save(tokens.name, np.asarray(corpus.train.tokens))
    shape = json.dumps(_shape(cfg, corpus.vocabulary.size))
    commands = {
      variant: ('craft_train', [name, *flags, *more, f'--steps={steps}'])
      for variant, more in _ours(block).items()
    } | {
      variant: (
        'torch_train',
        [shape, tokens.name, f'--batch={cfg.train.batch_size}',
         f'--steps={steps}', *more],
      )
      for variant, more in _PEERS.items()
    }  # fmt: skip
    wanted = measure.chosen(commands, args.only)
    commands = {v: c for v, c in commands.items() if v in wanted}
    with workers.opened(commands) as found:
      seconds = measure.alternate(found, args.pairs)
      rows = _rows(found, seconds, cfg, steps, args.size)
  _report(args, rows, seconds, steps)


def _arguments() -> argparse.Namespace:
  parser = measure.arguments(__doc__ or '', 7)
  parser.add_argument('--size', choices=_SIZES, default='cpu')
  parser.add_argument(
    '--block',
    choices=('gpt2', 'craft'),
    default='gpt2',
    help='the model both sides train (default: gpt2)',
  )
  parser.add_argument('--sweep', choices=_SWEEPS, help='no peers, see above')
  parser.add_argument('--steps', type=int, help='steps in each turn')
  parser.add_argument('--only', help='variants: names, or parts of them')
  return parser.parse_args()


_PEERS = {
  'torch float32': [],
  'torch float32 compiled': ['--compile'],
  'torch bfloat16': ['--bfloat16'],
  'torch bfloat16 compiled': ['--bfloat16', '--compile'],
  'transformers float32': ['--transformers'],
  'transformers bfloat16': ['--transformers', '--bfloat16'],
}


def _ours(block: Sequence[str]) -> dict[str, list[str]]:
  """Craft with the same model and optimizer, and as its configs have it."""
  same = [*block, *_ADAMW]
  return {
    'craft': same,
    'craft float32': [*same, 'model.precision=float32'],
    'craft, its own recipe': [],
  }


def _shape(cfg: Config, vocabulary_size: int) -> dict[str, object]:
  names = ('context', 'width', 'depth', 'num_heads', 'norm', 'mlp', 'position',
           'qk_norm', 'logit_cap', 'tied', 'dropout')  # fmt: skip
  return {name: getattr(cfg.model, name) for name in names} | {
    'vocabulary_size': vocabulary_size
  }


def _rows(
  found: Mapping[str, workers.Worker],
  seconds: Mapping[str, Sequence[float]],
  cfg: Config,
  steps: int,
  size: str,
) -> dict[str, dict[str, object]]:
  """Figures of each variant, and how many times as fast as a peer ours are."""
  tokens = steps * cfg.train.batch_size * cfg.model.context
  medians = {name: statistics.median(s) for name, s in seconds.items()}
  peers = {name: m for name, m in medians.items() if name in _PEERS}
  exact = {name: m for name, m in peers.items() if 'float32' in name}
  against = {
    'float32': min(exact, key=exact.__getitem__, default=''),
    'any': min(peers, key=peers.__getitem__, default=''),
  }
  rows = {}
  for name, worker in found.items():
    flops = worker.facts.get('flops_per_token', 0)
    rows[name] = worker.facts | {
      'milliseconds': 1e3 * medians[name] / steps,
      'chars_per_second': tokens / medians[name],
      'gflops': flops * tokens / medians[name] / 1e9,
      'peak_bytes': worker.peak_bytes,
    }
    if name in peers:
      continue
    rows[name]['of_products'] = (
      rows[name]['gflops'] * 1e9 / worker.facts['products_per_second']
    )
    platform = worker.facts['platform']
    kind, bar = _BARS.get(platform, _BARS['other'])
    rows[name] |= {'against': kind, 'bar': bar if name == 'craft' else None}
    if name == 'craft' and platform != 'cpu' and size in _SHARES:
      rows[name]['least_of_products'] = _SHARES[size]
    for kind, peer in against.items():
      if peer:
        pairs = zip(seconds[peer], seconds[name], strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        rows[name][f'speedup_{kind}'] = statistics.median(ratios)
        rows[name][f'fastest_{kind}'] = peer
  return rows


def _report(
  args: argparse.Namespace,
  rows: Mapping[str, dict[str, object]],
  seconds: Mapping[str, Sequence[float]],
  steps: int,
) -> None:
  print(f'Training: size {args.size}, block {args.block}, {steps} steps a turn')
  print(measure.hardware())
  print(
    f'{"variant":26}{"ms/step":>9}{"spread":>8}{"chars/s":>10}{"GFLOP/s":>9}'
    f'{"of products":>13}{"peak MB":>9}{"warm s":>8}{"x float32":>11}'
    f'{"x fastest":>11}'
  )
  for name, row in rows.items():
    times = ''.join(
      f'{row[f"speedup_{kind}"]:11.2f}' if f'speedup_{kind}' in row else ''
      for kind in ('float32', 'any')
    )
    gflops = f'{row["gflops"]:9.0f}' if row['gflops'] else f'{"":9}'
    share = f'{row["of_products"]:.1%}' if 'of_products' in row else ''
    print(
      f'{name:26}{row["milliseconds"]:9.1f}{measure.spread(seconds[name]):8.1%}'
      f'{row["chars_per_second"]:10,.0f}{gflops}{share:>13}'
      f'{row["peak_bytes"] / 1e6:9.0f}{row["warm_up_seconds"]:8.1f}{times}'
    )
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    args.pairs,
    rows,
    case=f'{args.size}-{args.block}',
    bars=f'speedup_{rows["craft"]["against"]} at least'
    if 'craft' in rows
    else 'speedup_float32 at least',
    command=measure.command(),
  )


if __name__ == '__main__':
  main()
