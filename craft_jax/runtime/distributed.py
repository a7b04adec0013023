"""One run in several processes: joining, agreeing, saying who failed.

Every process runs the same program; an array may be spread over all of them.
Functions here that say "all processes" must be called by all, in one order.

What a process finds by itself (its clock, its disk, its memory, its signals)
never decides by itself what is run next: it goes through a function of this
module first. docs/scaling.md lists what is agreed on, and how.
"""

import hashlib
import itertools
import json
import os
import platform
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from craft_jax.errors import (
  PEER_LOST,
  OutOfMemory,
  RunFailed,
  UserError,
  one_line,
)
from craft_jax.runtime import jax_settings
from craft_jax.runtime.version import __version__

T = TypeVar('T')
_START_SECONDS = 300  # for all processes to appear
_HEARTBEAT_SECONDS = 60  # of silence, after which a process counts as lost
# For the others at the end; a process that failed does not wait at all.
_END_SECONDS = 300
_LONGEST_WAIT = 6 * 3600 * 1000  # milliseconds: for a corpus, a compiler
_meetings = itertools.count()


def join(
  coordinator: str = '', num_processes: int = 0, process_id: int = 0
) -> None:
  """Joins the other processes; must come before anything touches a device.

  Args:
    coordinator: `host:port` of process 0; '' asks the environment, which JAX
      understands on SLURM, Kubernetes, TPU pods and under Open MPI.
    num_processes: of the run, if `coordinator` is given.
    process_id: of this process, from 0, if `coordinator` is given.

  Raises:
    UserError: the environment does not say.
    RunFailed: not all of them came; `PEER_LOST`.
  """
  where: dict[str, Any] = {}
  if coordinator:
    where = {
      'coordinator_address': coordinator,
      'num_processes': num_processes,
      'process_id': process_id,
      'cluster_detection_method': 'deactivate',
    }
  try:
    jax.distributed.initialize(
      **where,
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_END_SECONDS,
    )
  except ValueError as e:
    raise UserError(
      f'--distributed finds no cluster it knows ({one_line(e)}); give '
      '--coordinator, --num-processes and --process-id'
    ) from e
  except RuntimeError as e:
    raise RunFailed(
      f'not all processes of the run came within {_START_SECONDS} s '
      f'({one_line(e)}); start them all again',
      PEER_LOST,
    ) from e


def is_first() -> bool:
  """Whether this process writes the logs."""
  return jax.process_index() == 0


def several() -> bool:
  """Whether the run has more than one process. Touches no device if not."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def of_first(value: int) -> int:
  """The value that process 0 gives. All processes."""
  if not several():
    return value
  wait_for_all()
  return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def told_by_first(look: Callable[[], T]) -> T:
  """What `look` finds in process 0, a JSON value. All processes.

  The others do not look: a shared file system may show them something else.

  Raises:
    UserError: as `opened_by_all`.
  """
  if not several():
    return look()
  text = opened_by_all(lambda: json.dumps(look()) if is_first() else '')
  data = np.frombuffer(text.encode(), np.uint8)
  if not is_first():
    data = np.zeros(of_first(0), np.uint8)
  else:
    of_first(len(data))
  told = np.asarray(multihost_utils.broadcast_one_to_all(data))
  return json.loads(told.tobytes())


def gather(text: str) -> list[bytes]:
  """The sha256 of the text that each process gives. All processes."""
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  if not several():
    return [digest.tobytes()]
  wait_for_all()
  rows = multihost_utils.process_allgather(digest)
  return [row.tobytes() for row in np.asarray(rows)]


def check_same(what: str, text: str) -> None:
  """Refuses a run whose processes do not agree. All processes.

  Raises:
    UserError: in every process, naming those that differ from process 0.
  """
  digests = gather(text)
  others = [i for i, digest in enumerate(digests) if digest != digests[0]]
  if others:
    raise UserError(
      f'{what} of {_named(others)} is not that of process 0; start all '
      'processes with the same command, environment and files'
    )


def check_program(what: str, settings: str) -> None:
  """Refuses processes that would not run the same program. All processes.

  Comes before anything else that they do together: programs that differ wait
  for each other for ever, or mix numbers of different models.

  Args:
    what: names the settings.
    settings: what this process was asked for, but for where its files are.

  Raises:
    UserError: see `check_same`.
  """
  if not several():
    return
  kind = jax.devices()[0].platform
  check_same('the kind of device', kind)
  check_same(
    'the environment (JAX_*, XLA_FLAGS)',
    json.dumps(jax_settings.recorded(kind)),
  )
  versions = (__version__, jax.__version__, jaxlib.__version__)
  check_same(
    'the version',
    ' '.join([*versions, *platform.python_version_tuple()[:2]]),
  )
  check_same(what, settings)


def failed_elsewhere(failed: bool) -> list[int]:
  """The other processes that say they failed. All processes."""
  if not several():
    return []
  wait_for_all()
  flags = np.asarray(multihost_utils.process_allgather(np.bool_(failed)))
  return [int(i) for i in np.flatnonzero(flags) if i != jax.process_index()]


def opened_by_all(function: Callable[[], T]) -> T:
  """Calls the function, which opens what this host has. All processes.

  Raises:
    OutOfMemory, UserError: its own.
    UserError: another process had one: nobody goes on alone.
  """
  try:
    result = function()
  except (OutOfMemory, UserError):
    failed_elsewhere(True)
    raise
  others = failed_elsewhere(False)
  if others:
    raise UserError(
      f'{_named(others)} could not start and said why; mend it there, then '
      'start all processes again'
    )
  return result


def wait_for_all() -> None:
  """Returns once all processes are here. All processes.

  Transfers between devices give up where one process is late: on CPUs after 30
  seconds. So before the first one after a compilation, or after anything that
  takes one host longer than another, the processes wait here, where only the
  loss of one ends the wait.
  """
  if several():
    key = f'craft_{next(_meetings)}'
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=_LONGEST_WAIT)


def stop_agreement() -> Callable[[bool], bool]:
  """Tells all processes alike when one was asked to end.

  JAX's preemption service waits for SIGTERM, so another reason to end becomes
  one. The result is called by all processes equally often, with whether this
  one was asked; from some call on it gives True in all of them.
  """
  calls, sent, reached = 0, False, False

  def agree(asked: bool) -> bool:
    nonlocal calls, sent, reached
    if asked and not sent:
      sent = True
      os.kill(os.getpid(), signal.SIGTERM)
    if not reached:
      reached = multihost_utils.reached_preemption_sync_point(calls)
      calls += 1
    return reached

  return agree


def _named(indices: list[int]) -> str:
  numbers = ', '.join(map(str, indices[:8])) + ', ...' * (len(indices) > 8)
  return f'process{"es" if len(indices) > 1 else ""} {numbers}'
