"""Runs of several processes: start, agreement and failures.

Every process runs the same program, and arrays are sharded over all of them.
Functions marked "Collective" must be called by all processes in the same order.

Local facts (clock, disk, memory, signals) must not decide what a process runs
next, unless a function of this module has made all processes agree.
docs/scaling.md lists what is agreed on, and how.
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
_START_SECONDS = 300  # timeout for all processes to connect
_HEARTBEAT_SECONDS = 60  # without a heartbeat, a process counts as lost
# Timeout for other processes at exit; a failed process does not wait.
_END_SECONDS = 300
_LONGEST_WAIT = 6 * 3600 * 1000  # milliseconds, for corpora and compilation
_meetings = itertools.count()


def join(
  coordinator: str = '', num_processes: int = 0, process_id: int = 0
) -> None:
  """Connects the processes of a run, before anything uses a device.

  Args:
    coordinator: `host:port` of process 0; '' lets JAX detect it on SLURM,
      Kubernetes, TPU pods and under Open MPI.
    num_processes: number of processes, if `coordinator` is given.
    process_id: number of this process from 0, if `coordinator` is given.

  Raises:
    UserError: the cluster cannot be detected.
    RunFailed: not all processes connected in time; the code is `PEER_LOST`.
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
      f'--distributed finds no known cluster ({one_line(e)}); give '
      '--coordinator, --num-processes and --process-id'
    ) from e
  except RuntimeError as e:
    raise RunFailed(
      f'not all processes of the run connected within {_START_SECONDS} s '
      f'({one_line(e)}); start them all again',
      PEER_LOST,
    ) from e


def is_first() -> bool:
  """Whether this is process 0, which writes the logs."""
  return jax.process_index() == 0


def several() -> bool:
  """Whether the run has several processes; if not, touches no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def of_first(value: int) -> int:
  """Broadcasts the value of process 0. Collective."""
  if not several():
    return value
  wait_for_all()
  return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def told_by_first(look: Callable[[], T]) -> T:
  """Calls `look` in process 0 and broadcasts its JSON value. Collective.

  Other processes do not call it, since a shared file system may show them
  another state.

  Raises:
    UserError: `look` raised it in process 0.
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
  """Gathers the sha256 of each process's text. Collective."""
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  if not several():
    return [digest.tobytes()]
  wait_for_all()
  rows = multihost_utils.process_allgather(digest)
  return [row.tobytes() for row in np.asarray(rows)]


def check_same(what: str, text: str) -> None:
  """Checks that `text` is the same in all processes. Collective.

  Raises:
    UserError: raised in every process, naming those that differ from process 0.
  """
  digests = gather(text)
  others = [i for i, digest in enumerate(digests) if digest != digests[0]]
  if others:
    raise UserError(
      f'{what} of {_named(others)} is not that of process 0; start all '
      'processes with the same command, environment and files'
    )


def check_program(what: str, settings: str) -> None:
  """Checks that all processes would run the same program. Collective.

  Must precede all other collectives: different programs would deadlock, or mix
  results of different models.

  Args:
    what: description of `settings` for the error message.
    settings: settings of this process, without local paths.

  Raises:
    UserError: devices, environment, versions or settings differ.
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
  """Numbers of the other processes that pass `failed=True`. Collective."""
  if not several():
    return []
  wait_for_all()
  flags = np.asarray(multihost_utils.process_allgather(np.bool_(failed)))
  return [int(i) for i in np.flatnonzero(flags) if i != jax.process_index()]


def opened_by_all(function: Callable[[], T]) -> T:
  """Calls a function that may fail on some hosts. Collective.

  Raises:
    OutOfMemory, UserError: raised by the function in this process.
    UserError: the function failed in another process.
  """
  try:
    result = function()
  except (OutOfMemory, UserError):
    failed_elsewhere(True)
    raise
  others = failed_elsewhere(False)
  if others:
    raise UserError(
      f'{_named(others)} could not start; see the error there, fix it and '
      'start all processes again'
    )
  return result


def wait_for_all() -> None:
  """Barrier without a short timeout. Collective.

  Transfers between devices time out if a process is late, on CPUs after 30
  seconds. Processes therefore wait here before the first transfer after
  anything that takes hosts different times, such as a compilation.
  """
  if several():
    key = f'craft_{next(_meetings)}'
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=_LONGEST_WAIT)


def stop_agreement() -> Callable[[bool], bool]:
  """Makes a collective function by which all processes stop at the same step.

  It takes whether this process was asked to stop, and must be called equally
  often by all. Some calls after one was asked, it returns True in all of them.
  JAX's preemption service listens to SIGTERM, which other requests are sent as.
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
