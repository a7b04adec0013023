"""The flags of commands that can run as several processes."""

import argparse

from craft_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that join several processes to one run."""
  group = parser.add_argument_group(
    'several processes (launch/ has scripts that start them)'
  )
  group.add_argument(
    '--distributed',
    action='store_true',
    help='join the processes that SLURM, Kubernetes, a TPU pod or MPI started',
  )
  group.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='join by hand: where process 0 listens (default: not by hand)',
  )
  group.add_argument(
    '--num-processes',
    type=int,
    metavar='N',
    help='with --coordinator (default: none)',
  )
  group.add_argument(
    '--process-id', type=int, metavar='I', help='with --coordinator, from 0'
  )


def asked(args: argparse.Namespace) -> bool:
  """Whether the flags ask for several processes."""
  return args.distributed or args.coordinator is not None


def join(args: argparse.Namespace) -> None:
  """Joins if the flags say so; comes before anything touches a device.

  Raises:
    UserError: flags that do not go together, or nobody to join.
  """
  by_hand = (args.coordinator, args.num_processes, args.process_id)
  if any(value is not None for value in by_hand):
    _check_by_hand(args)
  if not asked(args):
    return
  from craft_jax.runtime import distributed

  if args.distributed:
    distributed.join()
  else:
    distributed.join(*by_hand)


def _check_by_hand(args: argparse.Namespace) -> None:
  if args.distributed:
    raise UserError('give --distributed or --coordinator, not both')
  if None in (args.coordinator, args.num_processes, args.process_id):
    raise UserError(
      '--coordinator, --num-processes and --process-id go together'
    )
  host, _, port = args.coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise UserError(f'--coordinator={args.coordinator} must be HOST:PORT')
  if not 0 <= args.process_id < args.num_processes:
    raise UserError(
      f'--process-id={args.process_id} must be from 0 to --num-processes - 1, '
      f'{args.num_processes - 1}'
    )
