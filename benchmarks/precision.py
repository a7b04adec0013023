"""What do bfloat16 products change in the loss?

`shakespeare_cpu` for 300 steps under both precision policies, the same seeds
and so the same batches: the loss on the whole validation split at the end. The
difference is of the means; the spread between seeds stands beside it.

  python benchmarks/precision.py --data tinyshakespeare.txt [--steps 300]
"""

import statistics
from typing import Any

import ablate
import measure

_POLICIES = ('float32', 'bfloat16')
_MOST = 0.005  # nats between the two


def main() -> None:
  """Prints the table, then one JSON object."""
  parser = measure.arguments(__doc__ or '')
  parser.set_defaults(data='')
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--seeds', type=int, default=3, help='runs of each')
  args = parser.parse_args()
  more = [f'train.steps={args.steps}', *args.set]
  losses: dict[str, list[float]] = {policy: [] for policy in _POLICIES}
  for seed in range(args.seeds):
    for policy in _POLICIES:
      setting = {'model.precision': policy}
      summary = ablate.train(setting, more, seed, args.data)
      assert summary is not None, 'the run failed; see above'
      losses[policy].append(summary['val_loss'])
  reference = statistics.mean(losses['float32'])
  rows: dict[str, dict[str, Any]] = {}
  print(f'{"policy":10}{"mean nats":>12}{"difference":>12}{"bar":>8}  by seed')
  for policy, values in losses.items():
    difference = abs(statistics.mean(values) - reference)
    bar = _MOST if policy != 'float32' else None
    rows[policy] = {
      'val_loss': statistics.mean(values),
      'losses': values,
      'difference': difference,
      'bar': bar,
    }
    by_seed = ' '.join(f'{value:.4f}' for value in values)
    print(
      f'{policy:10}{statistics.mean(values):12.4f}{difference:12.4f}'
      f'{bar or "":>8}  {by_seed}'
    )
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    args.seeds,
    rows,
    bars='difference at most',
    steps=args.steps,
  )


if __name__ == '__main__':
  main()
