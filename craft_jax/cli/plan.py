"""Say what a run needs, and what of it fits into the memory of devices.

Parameters, FLOPs per token, state and activations are an estimate by arithmetic
from shapes; it needs no accelerator and allocates nothing. The mesh is the
config's if it sets one, else the simplest that the run fits on: data, then
fsdp, then tensor. With --compile it is the devices at hand that are asked
about: the run's own program is compiled for them, for each mesh axis in turn,
and its bytes are the compiler's; with --steps some steps and a checkpoint are
timed.

examples:
  craft plan --config=base:large --device=h100-80gb --devices=8
  craft plan --config=base:large --devices=1 --memory=8GiB
  craft plan --config=base:large --device=v5e --devices=16 \\
    --config.mesh.fsdp=16 --config.train.batch_size=256 --json
  craft plan --config=base --compile --steps=5
"""

import argparse

from craft_jax.errors import UserError
from craft_jax.runtime import strict_json

SUMMARY = 'what a run needs, and what fits into memory'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    '--config',
    default='base',
    help='file, or name of a shipped config, with :variant (default: base)',
  )
  where = parser.add_argument_group('devices that need not be here')
  where.add_argument(
    '--device', default='h100-80gb', help='name (default: h100-80gb)'
  )
  where.add_argument(
    '--devices', type=int, default=8, help='how many (default: 8)'
  )
  where.add_argument(
    '--memory',
    metavar='SIZE',
    help='of each device, such as 8GiB or 24GB, in place of its own; with '
    '--compile in place of what is free',
  )
  parser.add_argument(
    '--vocabulary-size',
    type=int,
    default=0,
    help='tokens, specials included (default: that of bytes, or of '
    'text.max_chars)',
  )
  here = parser.add_argument_group('the devices at hand')
  here.add_argument(
    '--compile',
    action='store_true',
    help='for the devices at hand; --device and --devices are not used',
  )
  here.add_argument(
    '--steps',
    type=int,
    default=0,
    metavar='N',
    help='with --compile: do N steps and a save, and time them',
  )
  parser.add_argument('--json', action='store_true', help='one JSON object')


def run(args: argparse.Namespace) -> int:
  """Prints the plan; returns the exit code."""
  if args.steps and not args.compile:
    raise UserError('--steps needs --compile; add it')
  if args.compile:
    return _at_hand(args)
  import jax

  from craft_jax.config import load as config_lib
  from craft_jax.train import plan
  from craft_jax.train.plan import text
  from craft_jax.train.plan.model import mesh_is_set

  jax.config.update('jax_platforms', 'cpu')  # leave accelerators to others
  cfg = config_lib.load_config(args.config, args.overrides)
  device = plan.find_device(args.device)
  where = args.device, _size(args) or device.memory, device.platform
  asked = plan.sketch(cfg, args.vocabulary_size)
  if mesh_is_set(cfg):
    layout = plan.Layout(**config_lib.check_devices(cfg, args.devices))
    asked.check(layout)
    found = text.Plan(asked, asked, layout, 'as the config says', *where)
  else:
    found = text.recommended(asked, args.devices, *where)
  if args.json:
    print(strict_json.dumps(text.as_dict(found)))
  else:
    print(text.text(found))
  return 0


def _size(args: argparse.Namespace) -> int:
  """`--memory` in bytes; 0 if it is not given."""
  if args.memory is None:
    return 0
  from craft_jax.runtime.host_memory import parse_bytes

  try:
    return parse_bytes(args.memory)
  except ValueError:
    raise UserError(
      f'--memory={args.memory} is no size; give one such as 8GiB or 24GB'
    ) from None


def _at_hand(args: argparse.Namespace) -> int:
  """The plan of the devices of this machine, compiled."""
  from absl import logging

  from craft_jax.config import load as config_lib
  from craft_jax.data.sources import cache_folder
  from craft_jax.runtime import compilation_cache
  from craft_jax.train.plan import compiled, compiled_text

  if args.steps < 0:
    raise UserError(f'--steps={args.steps} must not be negative')
  cfg = config_lib.load_config(args.config, args.overrides)
  logging.set_verbosity(logging.FATAL)
  compilation_cache.use(cache_folder(cfg.data))
  result = compiled.at_hand(cfg, args.steps, _size(args))
  if args.json:
    print(strict_json.dumps(compiled_text.as_dict(result)))
  else:
    print(compiled_text.text(result))
  return 0
