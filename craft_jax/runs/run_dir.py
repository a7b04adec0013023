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

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.runs.layout import (
  CHECKPOINTS,
  CONFIG,
  METADATA,
  RUNNING,
  SUMMARY,
)
from craft_jax.runs.lock import LOCK
from craft_jax.runtime import files, host_memory, jax_settings, strict_json

_SHARED_SECONDS = 20.0
_MOST_DIFF = 1 << 20  # bytes of uncommitted changes that are kept
_PACKAGES = (
  'craft-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain',
  'numpy', 'ml-collections',
)  # fmt: skip

_COMPUTING = ('craft-jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain')


@dataclasses.dataclass
class RunDir:
  """An open run directory.

  Attributes:
    path: the folder, local or remote.
    metadata: what `metadata.json` holds: the fields of this start of the
      program, and those of the starts before it under `earlier`.
    writes: whether this process of the run writes the files.
    config: what `config.json` holds.
    inode: device and number of the folder; () in an object store.
  """

  path: epath.Path
  metadata: dict[str, Any]
  writes: bool = True
  config: str = ''
  inode: tuple[int, ...] = ()

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
    """A line if versions or settings of XLA have changed since; else ''."""
    last: dict[str, Any] = (self.metadata.get('earlier') or [{}])[-1]
    old, new = _computing(last), _computing(self.metadata)
    changes = [
      f'{name} {old[name]} is now {new[name]}'
      for name in old
      if old[name] and new[name] and old[name] != new[name]
    ]
    before, now_ = last.get('rounding'), self.metadata.get('rounding')
    if isinstance(before, dict) and isinstance(now_, dict):
      changes += jax_settings.changes(before, now_)
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
      text = strict_json.dumps(self.metadata, indent=2)
      _write(self.path / METADATA, text + '\n')

  def mend(self) -> str:
    """Writes the files anew that are missing, as where the folder was moved.

    Returns:
      What was missing, in a line; '' if nothing was.

    Raises:
      UserError: the folder is another one now, and not empty; or it cannot be
        written.
    """
    if not self.writes:
      return ''
    same = self.path.is_dir()
    missing = [n for n in (CONFIG, METADATA) if not (self.path / n).exists()]
    if self.inode and same and _inode(self.path) != self.inode:
      same = False
      taken = {p.name for p in self.path.iterdir()} - {LOCK, CHECKPOINTS}
      if taken and not self._is_ours():
        raise UserError(
          f'{self.path} is another folder now than the one that this run was '
          'started in; nothing was written to it, and the run ends here'
        )
    elif not missing:
      return ''
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise UserError(f'cannot make the run directory {self.path}: {e}') from e
    self.inode = _inode(self.path)
    if not missing:
      return ''
    _write(self.path / CONFIG, self.config)
    self.update()
    if same:
      return f'{self.path} had lost {" and ".join(missing)}, written anew'
    return (
      f'{self.path} was removed or moved while training; it is written anew, '
      'and the checkpoints before are not in it'
    )

  def _is_ours(self) -> bool:
    """Whether the folder holds the metadata of this start of the program."""
    try:
      found = json.loads((self.path / METADATA).read_text())
      names = ('host', 'pid', 'start_time')
      return all(found[name] == self.metadata[name] for name in names)
    except (OSError, ValueError, KeyError, TypeError):
      return False

  def finish(self, status: str, exit_reason: str) -> None:
    """Notes the end.

    Args:
      status: `finished`, `stopped` (the same command goes on) or `failed`.
      exit_reason: in words, such as `stopped at step 30`.
    """
    self.update(end_time=now(), status=status, exit_reason=exit_reason)


def _inode(path: epath.Path) -> tuple[int, ...]:
  if files.is_remote(path):
    return ()
  found = os.stat(path)
  return found.st_dev, found.st_ino


def _computing(metadata: Mapping[str, Any]) -> dict[str, str | None]:
  """Versions of what decides how a step is computed."""
  packages = metadata.get('packages')
  packages = packages if isinstance(packages, dict) else {}
  return {
    'Python': metadata.get('python'),
    **{name: packages.get(name) for name in _COMPUTING},
  }


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
  try:
    old = json.loads((path / METADATA).read_text())
    earlier = [*old.pop('earlier', []), old]
  except FileNotFoundError:
    pass
  except (ValueError, AttributeError) as e:
    raise UserError(
      f'{path / METADATA} is damaged ({e}); move it away to continue'
    ) from e
  text = config_lib.to_json(cfg) + '\n'
  _write(path / CONFIG, text)
  run = RunDir(path, {}, config=text, inode=_inode(path))
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
  """Raises UserError if the folder cannot be a run's.

  It holds something else, or the layer that stores arrays would use another
  folder in its place.
  """
  files.check_place(workdir, '--workdir')
  path = epath.Path(workdir)
  if not files.is_remote(path) and '\\' in os.path.abspath(path):
    raise UserError(
      f'{os.path.abspath(path)} has a backslash in its name, which TensorStore '
      'reads as a slash; give a --workdir without one'
    )
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
    'oom_kills': host_memory.kills(),
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
