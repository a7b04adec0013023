"""What saving in the background costs a run.

Segments of 100 steps of `shakespeare_cpu`, alternately plain and begun with a
save, whose writing and checking then goes on beside the steps. Every segment
with a save also awaits it at its end, so none of its cost falls elsewhere.

  python benchmarks/checkpoint.py [--data tinyshakespeare.txt] [--pairs 24]
"""

import tempfile

import measure

from craft_jax.config.load import load_config
from craft_jax.runtime.signals import Interrupts
from craft_jax.train.run import open_loop, open_setup

_STEPS = 100


def main() -> None:
  """Prints the ratio; the bar is 1.03."""
  args = measure.arguments(__doc__ or '', 24).parse_args()
  steps = str(2 * _STEPS * (args.pairs + 2))
  cfg = load_config(
    'shakespeare_cpu',
    measure.overrides(args, f'train.steps={steps}', 'eval.every=0'),
  )
  with tempfile.TemporaryDirectory() as folder:
    setup = open_setup(cfg, f'{folder}/run')
    with setup.closing:
      loop = open_loop(setup, True, Interrupts())

      def plain() -> None:
        loop.end = loop.step + _STEPS
        loop._train()

      def saving() -> None:
        loop._save()
        plain()
        setup.checkpointer.wait()

      seconds = measure.alternate(
        {'no save': plain, 'a save every 100 steps': saving}, args.pairs
      )
      loop.feed.close()
      loop.writer.close()
  measure.report(
    'What does saving every 100 steps cost shakespeare_cpu?',
    seconds,
    'no save',
    _STEPS,
    {'a save every 100 steps': 1.03},
  )


if __name__ == '__main__':
  main()
