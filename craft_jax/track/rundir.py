"""The run directory: the config and how, where and when the run was made."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from craft_jax import config as config_lib
from craft_jax import files, jax_settings, room
from craft_jax.errors import UserError
from craft_jax.settings import Config
from craft_jax.track.layout import CONFIG, METADATA, RUNNING, SUMMARY

_SHARED_SECONDS = 20.0
_MOST_DIFF = 1 << 20  # bytes of uncommitted changes that are kept
_PACKAGES = (
  'craft-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain',
  'numpy', 'ml-collections',
)  # fmt: skip


@dataclasses.dataclass
class RunDir:
  """An open run directory.

  Attributes:
    path: the folder, local or remote.
    metadata: what `metadata.json` holds: the fields of this start of the
      program, and those of the starts before it under `earlier`.
    writes: whether this process of the run writes the files.
  """

  path: epath.Path
  metadata: dict[str, Any]
  writes: bool = True

  @property
  def summarized_step(self) -> int | None:
    """The step that `summary.json` tells of; None without one."""
    try:
      return json.loads((self.path / SUMMARY).read_text())['step']
    except (OSError, ValueError, KeyError, TypeError):
      return None

  def how_the_last_ended(self) -> str:
    """A line if the start before this one ended without a word; else ''."""
    last: dict[str, Any] = (self.metadata.get('earlier') or [{}])[-1]
    if last.get('status') != RUNNING:
      return ''
    text = (
      f'the last start here (process {last.get("pid")} on {last.get("host")}, '
      f'{last.get("start_time")}) ended without a word: it was killed, or the '
      'machine went down'
    )
    before, now_ = last.get('oom_kills'), self.metadata.get('oom_kills')
    same = last.get('host') == self.metadata.get('host')
    if same and before is not None and now_ is not None and now_ > before:
      text += (
        f'; the kernel has killed {now_ - before} process(es) for memory since '
        'then, so a larger train.accumulate or --auto-batch may help'
      )
    return text

  def what_rounds_otherwise(self) -> str:
    """A line if XLA is told other things than at the last start; else ''."""
    last: dict[str, Any] = (self.metadata.get('earlier') or [{}])[-1]
    before, now_ = last.get('rounding'), self.metadata.get('rounding')
    if not isinstance(before, dict) or not isinstance(now_, dict):
      return ''
    changes = jax_settings.changes(before, now_)
    if not changes:
      return ''
    return (
      f'the environment is not that of the last start ({"; ".join(changes)}): '
      'sums may round otherwise, so the run is not one without the stop'
    )

  def update(self, **fields: Any) -> None:
    """Adds JSON values to the metadata and writes the file whole."""
    self.metadata |= fields
    if self.writes:
      text = json.dumps(self.metadata, indent=2)
      _write(self.path / METADATA, text + '\n')

  def finish(self, status: str, exit_reason: str) -> None:
    """Notes the end.

    Args:
      status: `finished`, `stopped` (the same command goes on) or `failed`.
      exit_reason: in words, such as `stopped at step 30`.
    """
    self.update(end_time=now(), status=status, exit_reason=exit_reason)


def open_run(
  workdir: epath.PathLike, cfg: Config, *, write: bool = True, **facts: Any
) -> RunDir:
  """Makes or continues a run directory: writes config and metadata.

  Args:
    workdir: the folder; made if missing.
    cfg: the resolved config.
    write: False in all but one process of a run.
    **facts: further JSON values of the metadata, such as `precision`,
      `corpus_fingerprint`, `corpus`, `mesh`.

  Raises:
    UserError: the folder holds other things than a run, or cannot be written.
  """
  path = epath.Path(workdir)
  check_ours(path)
  if not write:
    return RunDir(path, {}, writes=False)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f'cannot make the run directory {path}: {e}') from e
  earlier = []
  if (path / METADATA).exists():
    try:
      old = json.loads((path / METADATA).read_text())
      earlier = [*old.pop('earlier', []), old]
    except (ValueError, AttributeError) as e:
      raise UserError(
        f'{path / METADATA} is damaged ({e}); move it away to continue'
      ) from e
  _write(path / CONFIG, config_lib.to_json(cfg) + '\n')
  run = RunDir(path, {})
  run.update(
    **describe(cfg),
    **_changes(path),
    **facts,
    status=RUNNING,
    exit_reason='running',
    earlier=earlier,
  )
  return run


def check_ours(workdir: epath.PathLike) -> None:
  """Raises UserError if the folder exists and holds something else."""
  files.check_place(workdir, '--workdir')
  path = epath.Path(workdir)
  if not path.exists():
    return
  if not path.is_dir():
    raise UserError(f'{path} is a file; give --workdir a folder')
  names = {p.name for p in path.iterdir() if not p.name.startswith('.')}
  if names and CONFIG not in names:
    raise UserError(
      f'{path} holds {min(names)} and no run; give --workdir a new folder'
    )


def check_shared(workdir: epath.PathLike) -> None:
  """Raises UserError where this host does not see the folder that another made.

  Network file systems show a new folder late, so it is looked for for a while.
  An object store is one for all, and has no empty folders to look for.
  """
  if files.is_remote(workdir):
    return
  deadline = time.monotonic() + _SHARED_SECONDS
  while not epath.Path(workdir).is_dir():
    if time.monotonic() > deadline:
      raise UserError(
        f'{socket.gethostname()} does not see {workdir}, which process 0 has '
        'made; give a --workdir on a file system that all hosts share'
      )
    time.sleep(0.5)


def describe(cfg: Config) -> dict[str, Any]:
  """This start of the program in JSON values; reads the devices from JAX."""
  devices = jax.devices()
  return {
    'command': sys.argv,
    'folder': os.getcwd(),
    'pid': os.getpid(),
    'start_time': now(),
    'end_time': None,
    'host': socket.gethostname(),
    'platform': platform.platform(),
    'python': platform.python_version(),
    'packages': _versions(),
    'git_commit': _git_commit(),
    'backend': devices[0].platform,
    'device_kind': devices[0].device_kind,
    'rounding': jax_settings.recorded(devices[0].platform),
    'num_devices': len(devices),
    'num_processes': jax.process_count(),
    'cpu_devices': len(devices) if devices[0].platform == 'cpu' else 0,
    'seed': cfg.seed,
    'oom_kills': room.kills(),
  }


def now() -> str:
  """The time in UTC, ISO 8601, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _versions() -> Mapping[str, str | None]:
  found: dict[str, str | None] = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def _git(*args: str) -> str | None:
  """What git says of the checkout that this package runs from.

  None for an installed package, or where git is not at hand.
  """
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists():
    return None
  try:
    return subprocess.run(
      ['git', '-C', str(root), *args],
      capture_output=True, text=True, timeout=10, check=True, errors='replace',
    ).stdout  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return None


def _git_commit() -> str | None:
  """The commit of the checkout, '+' if changed."""
  head = _git('rev-parse', 'HEAD')
  if head is None:
    return None
  return head.strip() + ('+' if _git('status', '--porcelain', '-uno') else '')


def _changes(path: epath.Path) -> dict[str, str | None]:
  """Keeps what the checkout has changed since its commit, if anything.

  The file is named by its content, so that each start of a run has its own.
  """
  diff = _git('diff', 'HEAD', '--no-color', '--no-ext-diff')
  if not diff:
    return {'git_diff': None}
  data = diff.encode()
  if len(data) > _MOST_DIFF:
    data = data[:_MOST_DIFF] + b'\n... cut short\n'
  name = f'changes-{hashlib.sha256(data).hexdigest()[:12]}.diff'
  _write(path / name, data)
  return {'git_diff': name}


def _write(path: epath.Path, text: str | bytes) -> None:
  try:
    files.write_atomic(path, text)
  except OSError as e:
    raise UserError(
      f'cannot write {path} ({e.strerror or e}); free space or mend the folder'
    ) from e
