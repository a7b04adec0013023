"""Tells that memory is short, and with what facts."""

import errno
import re
from typing import Any

from craft_jax.errors import OutOfMemory
from craft_jax.runtime.host_memory import room
from craft_jax.train.setup import Setup

_ASKED = re.compile(r'allocat\w*[^\d]{0,20}([\d.]+) ?([KMGT]i?B|bytes|B)?')
_UNITS = {'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}
_SIGNS = ('RESOURCE_EXHAUSTED', 'Out of memory', 'out of memory', 'bad_alloc')


def is_shortage(error: BaseException) -> bool:
  """Whether an error says that memory could not be had."""
  if isinstance(error, MemoryError):
    return True
  if isinstance(error, OSError):
    return error.errno == errno.ENOMEM
  return isinstance(error, (RuntimeError, ValueError)) and any(
    sign in str(error) for sign in _SIGNS
  )


def asked_bytes(text: str) -> int | None:
  """What an error of JAX or NumPy says was asked for; None if it does not."""
  found = _ASKED.search(text)
  if not found:
    return None
  return int(float(found[1]) * _UNITS.get((found[2] or ' ')[0], 1))


def shortage(
  setup: Setup, doing: str, needed: int | None, compiled: bool = False
) -> OutOfMemory:
  """The error of a run that is short of memory now.

  Its facts are what the planner needs to say what would help: `doing`,
  `bytes`, `compiled`, the bytes that a device can give (`available`, None if
  nothing tells) and what sets that (`limit`), and of the run `precision`,
  `vocabulary_size`, `mesh` and `platform`.

  Args:
    setup: of the run.
    doing: what it was at.
    needed: bytes on a device that were asked for; None if that is not known.
    compiled: by a program that was refused before it ran.
  """
  left = room()
  return OutOfMemory(
    {
      'doing': doing,
      'bytes': needed,
      'compiled': compiled,
      'available': left and left.bytes,
      'limit': left and left.source,
      'precision': setup.cfg.model.precision,
      'vocabulary_size': setup.corpus.vocabulary.size,
      'mesh': dict(setup.mesh.shape),
      'platform': setup.platform,
    }
  )


def check_program(program: Any, setup: Setup) -> None:
  """Refuses a compiled step whose buffers cannot be had, on a CPU.

  There the kernel may end a process that takes too much, without a word. Other
  devices say so themselves.

  Raises:
    OutOfMemory: it needs more than there is.
  """
  if setup.platform != 'cpu' or not setup.cfg.train.check_memory:
    return
  needed, left = program_bytes(program), room()
  if needed and left and needed > left.bytes:
    raise shortage(setup, 'training', needed, compiled=True)


def program_bytes(program: Any) -> int | None:
  """What a call takes beside its arguments, on a device; None if unknown."""
  found = program.memory_analysis()
  if found is None:
    return None
  return (
    found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
  )
