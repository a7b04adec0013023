"""Show the contents of a checkpoint: step, sizes, metrics, settings, arrays.

examples:
  craft inspect --workdir=runs/first
  craft inspect --workdir=runs/first --step=best --json
"""

import argparse
from typing import Any

from craft_jax.runtime import strict_json

SUMMARY = 'show the contents of a checkpoint'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument('--workdir', required=True, help='the run directory')
  parser.add_argument('--step', default='latest', help='step, latest or best')
  parser.add_argument(
    '--json', action='store_true', help='print one JSON object'
  )


def run(args: argparse.Namespace) -> int:
  """Prints the report; returns the exit code."""
  from craft_jax.runs.checkpoint import report

  result = report(args.workdir, args.step)
  print(strict_json.dumps(result) if args.json else _text(result))
  return 0


def _text(result: dict[str, Any]) -> str:
  """Formats the report, with changed settings and a table of arrays."""
  from craft_jax.config import describe
  from craft_jax.config import load as config_lib

  best = '' if result['best_step'] is None else f', best {result["best_step"]}'
  cfg = config_lib.from_json(strict_json.dumps(result['config']))
  vocabulary = result['vocabulary']
  lines = [
    f'checkpoint  step {result["step"]} of {cfg.train.steps}',
    f'steps kept  {", ".join(map(str, result["steps"]))}{best}',
    f'parameters  {result["params"]:,}',
    f'vocabulary  {vocabulary["kind"]}, {vocabulary["size"]} tokens with '
    'special tokens',
    f'corpus      {result["corpus_fingerprint"]}',
    *(
      f'{name:<16}  {result[name] or "none"}'
      for name in ('params_sha256', 'opt_state_sha256', 'ema_sha256')
    ),
  ]
  lines += ['', 'metrics' if result['metrics'] else 'no metrics yet']
  for name, value in result['metrics'].items():
    lines.append(f'  {name} = {"not finite" if value is None else value}')
  if result['withheld']:
    lines.append(f'  no bits per byte: {result["withheld"]}')
  different = describe.changed(cfg)
  lines += ['', 'settings that differ from the defaults' if different else
            'all settings are the defaults']  # fmt: skip
  lines += [f'  {name} = {value!r}' for name, value in different.items()]
  width = max((len(a['name']) for a in result['arrays']), default=0)
  lines += ['', 'arrays of the parameters']
  lines += [
    f'  {a["name"]:<{width}}  {a["dtype"]:<8}  {a["shape"]}'
    for a in result['arrays']
  ]
  return '\n'.join(lines)
