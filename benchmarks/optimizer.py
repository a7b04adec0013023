"""What part of a step is the optimizer's?

The step of `shakespeare_cpu` with Muon, with AdamW, and with plain gradient
descent, which is as little as an optimizer can do: what a step takes longer
than that one is the share of its optimizer.

  python benchmarks/optimizer.py [--data tinyshakespeare.txt] [--pairs 60]
"""

import statistics
import tempfile

import guards
import measure

from craft_jax.config.load import load_config
from craft_jax.train.run import open_setup

_VARIANTS = {
  'plain descent': ['optim.name=sgd', 'optim.momentum=0'],
  'adamw': ['optim.name=adamw'],
  'muon': ['optim.name=muon'],
}
_BARS = {'muon': 0.25}


def main() -> None:
  """Prints the shares; the bar of Muon's is a quarter."""
  args = measure.arguments(__doc__ or '', 60).parse_args()
  variants = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, optim in _VARIANTS.items():
      cfg = load_config('shakespeare_cpu', measure.overrides(args, *optim))
      # Its lock is let go at once: nothing is written there.
      setup = open_setup(cfg, f'{folder}/{name}')
      setup.closing.close()
      variants[name] = guards.runner(setup, cfg, True)
    seconds = measure.alternate(variants, args.pairs)
  question = "What part of a step of shakespeare_cpu is the optimizer's?"
  print(question, measure.hardware(), sep='\n')
  print(
    f'{"optimizer":16}{"ms/step":>9}{"share":>8}{"quartiles":>16}{"bar":>7}'
  )
  rows = {}
  for name, times in seconds.items():
    pairs = zip(times, seconds['plain descent'], strict=True)
    shares = [1 - least / time for time, least in pairs]
    low, high = measure.quartiles(shares)
    rows[name] = {
      'milliseconds': 1e3 * statistics.median(times) / guards._STEPS,
      'share': statistics.median(shares),
      'share_quartiles': [low, high],
      'bar': _BARS.get(name),
    }
    bar = f'{_BARS[name]:7.2f}' if name in _BARS else ''
    print(
      f'{name:16}{rows[name]["milliseconds"]:9.2f}{rows[name]["share"]:8.1%}'
      f'{f"{low:.1%}-{high:.1%}":>16}{bar}'
    )
  measure.conclude(question, args.pairs, rows, bars='share at most')


if __name__ == '__main__':
  main()
