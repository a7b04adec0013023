"""The entry point: `craft COMMAND` or `python -m craft_jax.main COMMAND`.

The default command is `train`. A command is a module of `craft_jax.cli` with
`SUMMARY`, `add_arguments(parser)` and `run(args) -> exit code`; it is imported
only when it is needed.
"""

import argparse
import contextlib
import errno
import functools
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn, TextIO

from craft_jax.cli import parser as parser_lib
from craft_jax.errors import (
  INTERRUPTED,
  PEER_LOST,
  Interrupted,
  RunFailed,
  UserError,
  hint,
  one_line,
)
from craft_jax.runtime import jax_settings, object_stores, terminal, xla_flags
from craft_jax.runtime.version import __version__

# Errors of the operating system when a file cannot grow.
_NO_ROOM = {
  errno.ENOSPC: 'no space left',
  errno.EDQUOT: 'the disk quota is used up',
  errno.EFBIG: 'the file is larger than the system allows',
}
_LEAVES: list[BaseException] = []  # errors after which threads are not joined
# Seconds by which process 0 of a failed run exits after the others: it hosts
# the coordination service, without which JAX aborts them before their message.
_LAST_OUT = 1.0
_STARTED = time.monotonic()  # wall-clock seconds of a run count from here


# Modules of `craft_jax.cli` by purpose, in the order of `craft help`.
_GROUPS = {
  'train': ('train', 'sweep', 'plan', 'profile'),
  'measure': ('eval', 'score'),
  'write text': ('sample', 'predict', 'serve'),
  'compress': ('compress', 'decompress'),
  'look at runs, data and settings': (
    'runs', 'scaling', 'inspect', 'data', 'config'
  ),
  'this program': ('bench', 'completion'),
}  # fmt: skip
COMMANDS: dict[str, Callable[[], ModuleType]] = {
  name: functools.partial(importlib.import_module, f'craft_jax.cli.{name}')
  for names in _GROUPS.values()
  for name in names
}


# Text of a JAX runtime error: the remedy for the user.
_DEVICE_ERRORS = {
  'RESOURCE_EXHAUSTED': (
    'the device is out of memory; lower train.batch_size, raise '
    'train.accumulate, or set model.remat=block'
  ),
  'Unsupported element type for DotThunk': (
    'this CPU cannot run one of the bfloat16 products; use '
    '--config.model.precision=float32'
  ),
}


# Parts of the errors that collectives raise when another process has ended.
_PEER_SIGNS = (
  'Gloo ', 'NCCL', 'oordination service', 'coordination_service', 'heartbeat',
  'Barrier timed out', 'DEADLINE_EXCEEDED', 'UNAVAILABLE: ',
)  # fmt: skip
_PEER_MESSAGE = (
  'another process of this run has ended or cannot be reached; its own output '
  'says why. Start all of them again with the same command: they go on from '
  'the last checkpoint, if there is one'
)


def overview() -> str:
  """Text of `craft help`."""
  lines = [
    f'craft {__version__}: language models over characters and bytes',
    '',
    'usage: craft [COMMAND] [flags]    (without a command: train)',
  ]
  for title, names in _GROUPS.items():
    lines += ['', f'{title}:']
    lines += [f'  {name:12}{COMMANDS[name]().SUMMARY}' for name in names]
  lines += [
    '',
    'craft COMMAND --help shows the flags of a command. Start with:',
    '  craft train --config=base --workdir=runs/first',
    '  craft sample --workdir=runs/first --prompt="def "',
  ]
  return '\n'.join(lines)


def open_command(name: str) -> tuple[ModuleType, parser_lib.Parser]:
  """Imports the module of a command and builds its parser.

  Raises:
    UserError: the command does not exist.
  """
  if name not in COMMANDS:
    raise UserError(f'unknown command {name!r}{_meant(name)}; see craft help')
  module = COMMANDS[name]()
  parser = parser_lib.Parser(prog=f'craft {name}', description=module.__doc__)
  module.add_arguments(parser)
  return module, parser


def _meant(name: str) -> str:
  """Hint for an unknown command: a subcommand of that name, or the nearest."""
  inner = [
    f"'craft {command} {name}'"
    for command in COMMANDS
    if name in open_command(command)[1].commands()
  ]
  if inner:
    return f', did you mean {" or ".join(inner)}?'
  return hint(name, COMMANDS)


def parse(
  name: str, argv: Sequence[str]
) -> tuple[ModuleType, argparse.Namespace]:
  """Imports the module of a command and parses its flags.

  `args.overrides` holds the `--config.a.b=v` flags as `a.b=v`.

  Raises:
    UserError: the command or a flag does not exist.
  """
  module, parser = open_command(name)
  flags, overrides = parser_lib.split_overrides(argv)
  args, unknown = parser.parse_known_args(flags)
  if unknown:
    near = hint(unknown[0].split('=')[0], parser.flags())
    raise UserError(
      f'unknown flag {unknown[0]!r}{near}; see craft {name} --help'
    )
  if overrides and not hasattr(args, 'config'):
    raise UserError(
      f'craft {name} takes no settings (--config.{overrides[0]}); '
      f'see craft {name} --help'
    )
  args.overrides = overrides
  args.started = _STARTED
  return module, args


def main(argv: Sequence[str]) -> int:
  """Runs one command and returns its exit code.

  0 is success, 1 a failed run, 2 a mistake in the input, 69 a run that lost
  one of its processes, 75 a run that a signal ended after its state was saved,
  130 any other interrupt.
  """
  argv = list(argv)
  if isinstance(sys.stdout, io.TextIOWrapper):
    # Do not fail if the terminal's encoding lacks a character.
    sys.stdout.reconfigure(errors='backslashreplace')
  terminal.protect()
  try:
    if not argv or argv[0] in ('help', '--help', '-h'):
      if len(argv) > 1 and argv[0] == 'help':
        argv = [*argv[1:], '--help']
      else:
        print(overview())
        return 0
    if argv[0] == '--version':
      print(f'craft {__version__}')
      return 0
    name, rest = (
      ('train', argv) if argv[0].startswith('-') else (argv[0], argv[1:])
    )
    module, args = parse(name, rest)
    _check_places(args)
    with (
      object_stores.failing_as_os_errors(),
      jax_settings.pinned_everywhere() as set_aside,
    ):
      if set_aside:
        _say(
          f'{" and ".join(set_aside)} ignored: Craft sets JAX keys, types, '
          'checks and transfers itself'
        )
      xla_flags.use()
      return module.run(args)
  except UserError as e:
    return _complain(str(e), 2)
  except RunFailed as e:
    _hurry(e)
    return _complain(str(e), e.code)
  except BrokenPipeError:
    # The reader of the pipe (`| head`) has closed it.
    _discard(sys.stdout)
    return 0
  except object_stores.StoreError as e:
    return _complain(object_stores.message(e), 1)
  except OSError as e:
    if e.errno in _NO_ROOM:
      where = e.filename or 'where the output goes'
      return _complain(f'{_NO_ROOM[e.errno]}: {where}', 1)
    if e.filename is None:
      raise
    return _complain(f'{e.filename}: {e.strerror}', 2)
  except (RuntimeError, ValueError, AssertionError) as e:  # raised by JAX
    text = str(e)
    if _lacks_platform():
      named = os.environ['JAX_PLATFORMS']
      return _complain(
        f'JAX_PLATFORMS={named} is not supported by the installed JAX; unset '
        f'it, or install JAX for {named}',
        2,
      )
    if _joined() and any(sign in text for sign in _PEER_SIGNS):
      return _complain(f'{_PEER_MESSAGE} ({one_line(e)})', PEER_LOST)
    remedy = next((r for w, r in _DEVICE_ERRORS.items() if w in text), None)
    if remedy is None:
      raise
    _hurry(e)
    return _complain(remedy, 2)
  except MemoryError as e:
    remedy = _DEVICE_ERRORS['RESOURCE_EXHAUSTED']
    return _complain(f'{remedy} ({one_line(e)})', 2)
  except Interrupted as e:
    return _complain(f'{e}; nothing was lost, run it again', INTERRUPTED)
  except KeyboardInterrupt:
    return _complain('interrupted', 130)


def _lacks_platform() -> bool:
  """Whether JAX cannot start on the platform that JAX_PLATFORMS names."""
  jax = sys.modules.get('jax')
  if jax is None or not os.environ.get('JAX_PLATFORMS'):
    return False
  try:
    jax.devices()
  except (RuntimeError, ValueError, AssertionError):
    return True
  return False


def _check_places(args: argparse.Namespace) -> None:
  """Raises `UserError` if a given folder cannot be read or written here."""
  dirs = getattr(args, 'dirs', None) or []
  given = [('DIR', d) for d in ([dirs] if isinstance(dirs, str) else dirs)]
  given.append(('--workdir', getattr(args, 'workdir', None) or ''))
  given = [(name, folder) for name, folder in given if folder]
  if not given:
    return
  from craft_jax.runtime import files

  for name, folder in given:
    files.check_place(folder, name)
  for name, folder in given:
    if files.is_remote(folder):
      object_stores.check_answers(folder, name)


def _complain(message: str, code: int) -> int:
  _say(message)
  return code


def _say(message: str) -> None:
  with contextlib.suppress(OSError):  # the terminal may be closed
    print(f'craft: {" ".join(message.split())}', file=sys.stderr)


def _hurry(error: BaseException) -> None:
  """Makes `console` exit without joining threads if memory ran out.

  After an allocation fails on one device, the others wait for it until XLA
  aborts them, a minute later.
  """
  cause = error.__cause__ or error
  if isinstance(cause, MemoryError) or 'RESOURCE_EXHAUSTED' in str(cause):
    _LEAVES.append(error)


def console() -> NoReturn:
  """Entry point of the console script `craft`."""
  _open_streams()
  if '_ARGCOMPLETE' in os.environ:  # a shell asks for completions
    COMMANDS['completion']().answer(COMMANDS)
  try:
    code = main(sys.argv[1:])
  except SystemExit as e:  # raised by argparse after --help
    code = e.code if isinstance(e.code, int) else 0
  code = _flushed(code)
  if code and _LEAVES and not _joined():
    os._exit(code)
  if code and _joined():
    # A normal exit waits for the other processes, which may wait for this one.
    if code != PEER_LOST and _is_first():
      time.sleep(_LAST_OUT)
    os._exit(code)
  sys.exit(code)


def _flushed(code: int) -> int:
  """Flushes the standard streams and returns the exit code.

  Python itself would exit with 120 if flushing fails. Here a closed reader or
  terminal changes nothing, and a full disk turns success into a failure.
  """
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError as e:
      _discard(stream)
      if e.errno in _NO_ROOM and not code and stream is sys.stdout:
        code = _complain(f'{_NO_ROOM[e.errno]}: where the output goes', 1)
  return code


def _discard(stream: TextIO) -> None:
  """Redirects a stream that nobody reads to the null device."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)


class _Patient(io.FileIO):
  """Standard error that ignores write errors, such as a closed terminal."""

  def write(self, data: Any) -> int:
    try:
      return super().write(data) or 0
    except OSError:
      return memoryview(data).nbytes


def _open_streams() -> None:
  """Opens standard streams that were closed (`>&-`) on the null device.

  Otherwise the first file to be opened would get descriptor 1, and printed text
  would be written into it. Child processes inherit the streams.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      flags = os.O_WRONLY if number else os.O_RDONLY
      os.set_inheritable(os.open(os.devnull, flags), True)  # takes `number`
  if sys.stdin is None:
    sys.stdin = open(0, encoding='utf-8', closefd=False)  # noqa: SIM115
  if sys.stdout is None:
    sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)  # noqa: SIM115
  sys.stderr = io.TextIOWrapper(
    io.BufferedWriter(_Patient(2, 'w', closefd=False)),
    encoding=getattr(sys.stderr, 'encoding', 'utf-8'),
    errors='backslashreplace',
    line_buffering=True,
  )


def _joined() -> bool:
  """Whether this process is one of several of a run."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def _is_first() -> bool:
  from craft_jax.runtime import distributed

  return distributed.is_first()


if __name__ == '__main__':
  console()
