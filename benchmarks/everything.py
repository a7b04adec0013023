"""What does this device do? The benchmarks beside peers, each result kept.

In one command: on a GPU a choice, its PyTorch peers being those that are fast
there, on a CPU the longer one of docs/benchmarks.md. What does not end in the
minutes given is stopped, and named with what was left out.

  pip install torch transformers
  python benchmarks/everything.py --data tinyshakespeare.txt [--minutes 10]
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

_ROOT = pathlib.Path(__file__).parents[1]
# The most telling first: the script and its flags.
_GPU = (
  ('train_step', '--size=gpu', '--set=train.batch_size=64', '--steps=100',
   '--pairs=3', '--only=craft,own recipe,bfloat16 compiled'),
  ('train_step', '--size=124m', '--steps=10', '--pairs=3',
   '--only=craft,bfloat16 compiled'),
  ('decode', '--batches=1,16,64', '--pairs=2', '--only=transformers'),
  ('engine', '--pairs=3'),
  ('constrained', '--pairs=3'),
  ('train_step', '--sweep=dispatch', '--size=gpu', '--steps=64', '--pairs=2'),
  ('startup', '--pairs=1'),
  ('data', '--pairs=2'),
)  # fmt: skip
_CPU = (
  ('train_step', '--size=cpu'),
  ('train_step', '--size=gpu'),
  ('train_step', '--sweep=dispatch', '--size=cpu', '--steps=64'),
  ('train_step', '--sweep=mesh', '--size=gpu', '--pairs=3'),
  ('decode', '--pairs=3'),
  ('constrained', '--pairs=7'),
  ('time_to_loss', '--pairs=2'),
  ('startup',),
  ('data',),
  ('scaling',),
  ('optimizer',),
  ('precision',),
  ('guards',),
  ('checkpoint',),
  ('meshes',),
)
_NEED_NO_DATA = ('decode', 'constrained', 'engine', 'precision')


def main() -> None:
  """Runs each; ends with 1 if one failed or was left out."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--data', help='the text, if it is not to be downloaded by the configs'
  )
  parser.add_argument('--minutes', type=float, help='for all (default: any)')
  args = parser.parse_args()
  end = time.monotonic() + 60 * (args.minutes or 1e9)
  plan = _CPU if _platform() == 'cpu' else _GPU
  failed = []
  for script, *flags in plan:
    words = [script, *flags]
    if args.data and script not in _NEED_NO_DATA:
      words.append(f'--data={args.data}')
    print(f'\n== {" ".join(words)}', flush=True)
    command = [sys.executable, '-m', 'craft_jax.main', 'bench', *words]
    if _run([*command, '--save'], end - time.monotonic()):
      failed.append(' '.join(words))
  for words in failed:
    print(f'not measured: {words}', file=sys.stderr)
  sys.exit(bool(failed))


def _run(command: list[str], seconds: float) -> int:
  """The exit code; what takes longer is ended, with all that it has started."""
  process = subprocess.Popen(command, cwd=_ROOT, start_new_session=True)
  try:
    return process.wait(max(1.0, seconds))
  except (subprocess.TimeoutExpired, KeyboardInterrupt):
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _platform() -> str:
  """Of the device, asked in a process that ends: it would hold its memory."""
  command = [sys.executable, str(_ROOT / 'benchmarks' / 'measure.py')]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return done.stdout.partition('-')[0]


if __name__ == '__main__':
  main()
