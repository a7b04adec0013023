"""Recognizes out-of-memory errors and collects facts about them."""

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
  """Whether an error means that memory could not be allocated."""
  if isinstance(error, MemoryError):
    return True
  if isinstance(error, OSError):
    return error.errno == errno.ENOMEM
  return isinstance(error, (RuntimeError, ValueError)) and any(
    sign in str(error) for sign in _SIGNS
  )


def asked_bytes(text: str) -> int | None:
  """Bytes requested according to an error of JAX or NumPy, or None."""
  found = _ASKED.search(text)
  if not found:
    return None
  return int(float(found[1]) * _UNITS.get((found[2] or ' ')[0], 1))


def shortage(
  setup: Setup, doing: str, needed: int | None, compiled: bool = False
) -> OutOfMemory:
  """The error of a run that is out of memory, with facts for the planner.

  Facts are the arguments, the bytes still `available` on a device (None if
  unknown) and the `limit` that sets them, and the run's `precision`,
  `vocabulary_size`, `mesh` and `platform`.

  Args:
    setup: the opened run.
    doing: what the run was doing.
    needed: bytes requested on a device; None if unknown.
    compiled: whether a compiled program was refused before it ran.
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
  """Checks on a CPU that the buffers of a compiled program fit in memory.

  Otherwise the kernel's OOM killer may end the process without a message. Other
  devices report such an error themselves.

  Raises:
    OutOfMemory: they do not fit.
  """
  if setup.platform != 'cpu' or not setup.cfg.train.check_memory:
    return
  needed, left = program_bytes(program), room()
  if needed and left and needed > left.bytes:
    raise shortage(setup, 'training', needed, compiled=True)


def program_bytes(program: Any) -> int | None:
  """Bytes per device that a call needs beside its arguments, or None."""
  found = program.memory_analysis()
  if found is None:
    return None
  return (
    found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
  )
