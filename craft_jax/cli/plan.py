"""Estimate bytes, time and communication of a run on named devices.

Arithmetic from data sheets and shapes; needs no accelerator, allocates
nothing, measures nothing. The mesh is the config's if it sets one, else the
one that needs the least time and fits.

examples:
  craft plan --config=base:large --device=h100-80gb --devices=8
  craft plan --config=base:large --device=v5e --devices=16 \\
    --config.mesh.fsdp=16 --config.train.batch_size=256 --json
"""

import argparse
import json

_UNSET = {'data': -1, 'fsdp': 1, 'tensor': 1}  # a config that sets no mesh
SUMMARY = 'estimate memory, time and communication on named devices'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    '--config',
    default='base',
    help='file, or name of a shipped config, with :variant (default: base)',
  )
  parser.add_argument(
    '--device', default='h100-80gb', help='name (default: h100-80gb)'
  )
  parser.add_argument(
    '--devices', type=int, default=8, help='how many (default: 8)'
  )
  parser.add_argument(
    '--utilisation',
    type=float,
    default=0.4,
    help='share of the peak that products reach (default: 0.4)',
  )
  parser.add_argument(
    '--vocabulary-size',
    type=int,
    default=0,
    help='symbols, specials included (default: that of bytes, or of '
    'text.max_chars)',
  )
  parser.add_argument('--json', action='store_true', help='one JSON object')


def run(args: argparse.Namespace) -> int:
  """Prints the plan; returns the exit code."""
  import jax

  from craft_jax import config, plan
  from craft_jax.plan import report

  jax.config.update('jax_platforms', 'cpu')  # leave accelerators to others
  cfg = config.load_config(args.config, args.overrides)
  device = plan.find_device(args.device)
  sketch = plan.sketch(cfg, args.vocabulary_size)
  if any(getattr(cfg.mesh, axis) != size for axis, size in _UNSET.items()):
    sizes = config.check_devices(cfg, args.devices)
    reason = 'as the config says'
    result = plan.estimate(
      sketch, device, plan.Layout(**sizes), args.utilisation
    )
  else:
    result, reason = plan.recommend(
      sketch, device, args.devices, args.utilisation
    )
  if args.json:
    flags = report.flags(cfg, result)
    print(
      json.dumps(
        {'device': args.device, 'reason': reason, 'flags': flags}
        | plan.as_dict(result)
      )
    )
  else:
    print(report.text(result, reason, cfg))
  return 0
