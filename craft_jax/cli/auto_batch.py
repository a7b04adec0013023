"""Training with micro-batches that become smaller until they fit.

A parent process starts the run as its child and touches no device itself, so
that it can also tell of an end that the child cannot: a kill.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from craft_jax.config.settings import Config
from craft_jax.errors import OutOfMemory, RunFailed, UserError
from craft_jax.runs import layout
from craft_jax.runtime import host_memory, strict_json
from craft_jax.runtime.signals import KINDS, as_child

_FILE = 'CRAFT_SHORTAGE_FILE'  # where the child tells of a shortage
# How a C++ library ends that was given no memory.
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)


# --- in the child ------------------------------------------------------------


def is_child() -> bool:
  """Whether this process was started by `run`."""
  return _FILE in os.environ


def tell(facts: Mapping[str, Any]) -> None:
  """Leaves what the parent wants to know of a shortage."""
  pathlib.Path(os.environ[_FILE]).write_text(strict_json.dumps(dict(facts)))


# --- in the parent -----------------------------------------------------------


class Sizes(NamedTuple):
  """What is made smaller.

  Attributes:
    accumulate: `train.accumulate`.
    eval_rows: `eval.batch_size`.
  """

  accumulate: int
  eval_rows: int

  def flags(self) -> list[str]:
    """As settings."""
    return [
      f'--config.train.accumulate={self.accumulate}',
      f'--config.eval.batch_size={self.eval_rows}',
    ]


def run(words: Sequence[str], cfg: Config, workdir: str) -> int:
  """Trains in child processes, each with half the micro-batch of the last.

  Args:
    words: of the command line: `train` and its flags, `--workdir` included and
      `--auto-batch` left out.
    cfg: the run.
    workdir: its folder.

  Returns:
    The exit code of the last child.

  Raises:
    RunFailed: it does not fit in any size, or was killed for another reason.
  """
  sizes = _first_sizes(cfg, workdir)
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'shortage.json'
    while True:
      file.unlink(missing_ok=True)
      kills = host_memory.kills()
      code = _child([*words, *sizes.flags()], file)
      facts = _shortage(file, code, kills)
      if facts is None:
        return _ended(code, workdir)
      if code < 0:
        _note_the_end(workdir, facts)
      smaller = _smaller(sizes, cfg, facts, workdir)
      if smaller is None:
        raise RunFailed(
          f'{OutOfMemory(facts)}, and no smaller micro-batch would help; use a '
          'smaller model.width, model.depth or model.context, '
          '--config.model.remat=block, or a device with more memory'
        )
      sizes = smaller
      _say(
        f'{OutOfMemory(facts)}; on from {_where(workdir)} with '
        f'{" ".join(sizes.flags())}, micro-batches of '
        f'{cfg.train.batch_size // sizes.accumulate}'
      )


def _first_sizes(cfg: Config, workdir: str) -> Sizes:
  """Those of the config, or smaller ones that the run has come to before."""
  sizes = Sizes(cfg.train.accumulate, cfg.eval.batch_size)
  before = _read(workdir, layout.CONFIG)
  try:
    train, rows = before['train'], before['eval']['batch_size']
    if train['batch_size'] == cfg.train.batch_size:
      sizes = Sizes(
        max(sizes.accumulate, train['accumulate']), min(sizes.eval_rows, rows)
      )
  except (KeyError, TypeError):
    pass
  return sizes


def _where(workdir: str) -> str:
  """Where a run that is started again goes on from."""
  from craft_jax.runs import checkpoint

  return 'the last checkpoint' if checkpoint.steps(workdir) else 'the start'


def _read(workdir: str, name: str) -> dict[str, Any]:
  """A JSON object of the run directory; {} if it is not there or not one."""
  from etils import epath

  try:
    found = json.loads((epath.Path(workdir) / name).read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _child(words: Sequence[str], file: pathlib.Path) -> int:
  """Runs a child to its end; its return code. Passes signals on.

  It has a process group of its own: of a Ctrl-C it hears once, from here.
  """
  child = subprocess.Popen(
    [sys.executable, '-m', 'craft_jax.main', *words],
    env=os.environ | as_child() | {_FILE: str(file)},
    process_group=0,
  )
  before = {kind: signal.getsignal(kind) for kind in KINDS}
  for kind, handler in before.items():
    if handler is not signal.SIG_IGN:
      signal.signal(kind, lambda number, _: child.send_signal(number))
  try:
    return child.wait()
  finally:
    for kind, handler in before.items():
      signal.signal(kind, handler)


def _shortage(
  file: pathlib.Path, code: int, kills: int | None
) -> dict[str, Any] | None:
  """What a child that ended lacked; None if it was not memory.

  Args:
    file: where it tells.
    code: of its end.
    kills: of the kernel for memory, before it started.
  """
  if file.exists():
    return json.loads(file.read_text())
  if code >= 0:
    return None
  return cause_of(signal.Signals(-code), kills, host_memory.kills())


def cause_of(
  number: signal.Signals, before: int | None, after: int | None
) -> dict[str, Any] | None:
  """Whether a signal that ended a process means that memory was short.

  A SIGKILL does if the kernel has counted a kill for memory since, or counts
  none; a crash does under an address space limit.

  Args:
    number: of the signal.
    before: kills for memory that the kernel had counted before.
    after: and has counted now.

  Returns:
    What to note, or None.
  """
  if number == signal.SIGKILL:
    if before is not None and after is not None and after <= before:
      return None
    who = 'the kernel' if after else 'somebody, the kernel perhaps'
    return {'doing': f'running, and was killed by {who}', 'bytes': None}
  if number in _CRASHES and host_memory.limited_address_space() is not None:
    doing = f'running, and ended with {number.name} under ulimit -v'
    return {'doing': doing, 'bytes': None}
  return None


def _smaller(
  sizes: Sizes, cfg: Config, facts: Mapping[str, Any], workdir: str
) -> Sizes | None:
  """Half the sizes of what lacked memory; None where that is not possible."""
  if facts['doing'] == 'evaluating':
    rows = sizes.eval_rows // 2
    return sizes._replace(eval_rows=rows) if rows else None
  if facts['doing'] == 'allocating the state':
    return None
  metadata = _read(workdir, layout.METADATA)
  shards = 1
  if metadata.get('backend', 'cpu') != 'cpu':  # CPU devices are as many as fit
    mesh = metadata['mesh']
    shards = mesh['data'] * mesh['fsdp']
  whole = cfg.train.batch_size
  for pieces in range(2 * sizes.accumulate, whole + 1):
    if whole % pieces == 0 and whole // pieces % shards == 0:
      return sizes._replace(accumulate=pieces)
  return None


def _ended(code: int, workdir: str) -> int:
  """The exit code of a child that did not lack memory."""
  if code >= 0:
    return code
  name = signal.Signals(-code).name
  facts = {'doing': f'ended by {name}', 'bytes': None}
  _note_the_end(workdir, facts, memory=False)
  raise RunFailed(
    f'the run was ended by {name}, and nothing says that memory was short; the '
    f'same command goes on from {_where(workdir)}'
  )


def _note_the_end(
  workdir: str, facts: Mapping[str, Any], memory: bool = True
) -> None:
  """Writes what a killed child could not: that its run has failed."""
  metadata = _read(workdir, layout.METADATA)
  if metadata.get('status') != layout.RUNNING:
    return
  from etils import epath

  from craft_jax.runs.run_dir import RunDir

  run_dir = RunDir(epath.Path(workdir), metadata)
  if memory:
    run_dir.update(out_of_memory=dict(facts))
  reason = str(OutOfMemory(facts)) if memory else str(facts['doing'])
  try:
    run_dir.finish(layout.FAILED, reason)
  except UserError as e:
    _say(str(e))


def _say(text: str) -> None:
  print(f'craft: {text}', file=sys.stderr, flush=True)
