"""Flags of commands that can run as several processes."""

import argparse

from craft_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that connect several processes of one run."""
  group = parser.add_argument_group(
    'several processes (launch/ has scripts that start them)'
  )
  group.add_argument(
    '--distributed',
    action='store_true',
    help='connect processes started by SLURM, Kubernetes, a TPU pod or MPI',
  )
  group.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='address of process 0, to connect by hand (default: none)',
  )
  group.add_argument(
    '--num-processes',
    type=int,
    metavar='N',
    help='number of processes, with --coordinator (default: none)',
  )
  group.add_argument(
    '--process-id', type=int, metavar='I', help='with --coordinator, from 0'
  )


def asked(args: argparse.Namespace) -> bool:
  """Whether the flags request several processes."""
  return args.distributed or args.coordinator is not None


def join(args: argparse.Namespace) -> None:
  """Connects to the other processes, if the flags request it.

  It must be called before any JAX device is used.

  Raises:
    UserError: the flags conflict, or no other process can be reached.
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
      '--coordinator, --num-processes and --process-id must be given together'
    )
  host, _, port = args.coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise UserError(f'--coordinator={args.coordinator} must be HOST:PORT')
  if not 0 <= args.process_id < args.num_processes:
    raise UserError(
      f'--process-id={args.process_id} must be from 0 to --num-processes - 1, '
      f'{args.num_processes - 1}'
    )
