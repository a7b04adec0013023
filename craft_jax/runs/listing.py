"""Run directories as records: finding them, their state, their facts."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from etils import epath

from craft_jax.config.settings import RENAMED
from craft_jax.errors import UserError
from craft_jax.runs import digest, layout, metric_table
from craft_jax.runs.lock import is_held
from craft_jax.runtime import files, object_stores, strict_json

_T = TypeVar('_T')
# What a run is listed and filtered by, besides its settings.
FACTS = {
  'name': 'its folder',
  'status': 'running, finished, stopped, failed or dead',
  'step': 'steps done',
  'steps': 'steps it was to do',
  'loss': 'least validation loss, nats per token',
  'best_step': 'step of that',
  'final': 'last validation loss, nats per token',
  'bpb': 'bits per byte of the evaluation of least loss',
  'train_loss': 'last training loss, nats per token',
  'speed': 'characters per second',
  'params': 'parameters',
  'seconds': 'time it has been going',
  'age': 'seconds since it last wrote',
  'started': 'first start (UTC)',
  'device_kind': 'the device',
  'num_devices': 'devices',
  'git_commit': 'commit of the code',
  'parent': 'run and step whose weights it started from',
}
_TRAINED = metric_table.keys(metric_table.TRAINING)
_EVALUATED = metric_table.keys(metric_table.EVALUATION)
for _key, _metric in (_TRAINED | _EVALUATED).items():
  FACTS.setdefault(_key, _metric.help)

# Names of older versions in metadata.json and summary.json.
_RENAMED = {
  'symbols_per_step': 'tokens_per_step',
  'train_symbols': 'train_tokens',
  'chars_per_symbol': 'chars_per_token',
  'flops_per_symbol': 'flops_per_token',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as its directory tells.

  Attributes:
    path: the directory; of a run in an object store, a local copy of its files.
    name: what to call it: the directory as it was given.
    settings: `{'model.width': 256, ...}` as they were saved.
    metadata: of the last start; those before it are under `earlier`.
    summary: what `summary.json` holds, or {}.
    digest: what its rows come to.
    status: `running`, `finished`, `stopped`, `failed` or `dead`.
    age: seconds since it last wrote.
  """

  path: pathlib.Path
  name: str
  settings: Mapping[str, Any]
  metadata: Mapping[str, Any]
  summary: Mapping[str, Any]
  digest: digest.Digest
  status: str
  age: float

  @property
  def counts(self) -> bool:
    """Whether its metrics are a result: it did all of its steps.

    One that was stopped, has failed or still runs has not had its schedule,
    so its loss is no sample of what these settings reach.
    """
    return self.status == layout.FINISHED

  @property
  def facts(self) -> dict[str, Any]:
    """Everything it can be filtered by; None where a run has no such fact."""
    d, meta = self.digest, self.metadata
    starts = [*meta.get('earlier', []), meta]
    parent = parent_of(meta)
    own = {
      'name': self.name,
      'status': self.status,
      'step': d.step,
      'steps': self.settings.get('train.steps'),
      'loss': d.best.get('val_loss'),
      'best_step': d.best.get('step'),
      'final': d.final.get('val_loss'),
      'bpb': d.best.get('val_bpb'),
      'train_loss': d.last.get('loss'),
      'speed': self.summary.get('chars_per_second')
      or d.last.get('chars_per_second'),
      'params': meta.get('params') or self.summary.get('params'),
      'seconds': d.last.get('seconds'),
      'age': self.age,
      'started': starts[0].get('start_time'),
      'device_kind': meta.get('device_kind'),
      'num_devices': meta.get('num_devices'),
      'git_commit': meta.get('git_commit'),
      'parent': f'{parent["run"]}@{parent["step"]}' if parent else None,
    }
    rows = {key: d.last.get(key) for key in _TRAINED}
    rows |= {key: d.best.get(key) for key in _EVALUATED}
    return dict(self.settings) | rows | own

  def unit(self, name: str) -> float | None:
    """`tokens_per_step`, `chars_per_token` or `flops_per_token`."""
    found = self.metadata.get(name, self.summary.get(name))
    if found is None and name == 'tokens_per_step':
      return self.settings['train.batch_size'] * self.settings['model.context']
    return found


def parent_of(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
  """What the last start that began with the weights of another run took.

  Args:
    metadata: of a run.

  Returns:
    `run`, the absolute path of its folder, `step` and more; None for a run
    whose weights were drawn.
  """
  starts = [*metadata.get('earlier', []), metadata]
  return next((s['parent'] for s in reversed(starts) if s.get('parent')), None)


def is_run(folder: files.AnyPath) -> bool:
  """Whether a folder is a run directory."""
  return (folder / layout.CONFIG).is_file() and (
    folder / layout.METADATA
  ).is_file()


def find(folders: Iterable[str]) -> list[files.AnyPath]:
  """Run directories that are, or are in, the folders; each once, in order.

  Raises:
    UserError: no such folder.
  """
  found: dict[files.AnyPath, None] = {}
  for folder in folders:
    path = files.as_path(folder)
    if not path.is_dir():
      raise UserError(f'no folder {folder}; give one that holds runs')
    found |= dict.fromkeys(
      _within_store(path) if files.is_remote(path) else _within(path)
    )
  return list(found)


def _within(path: pathlib.Path) -> Iterator[pathlib.Path]:
  for folder, inner, names in os.walk(path):
    inner[:] = sorted(name for name in inner if not name.startswith('.'))
    if layout.CONFIG in names and layout.METADATA in names:
      inner.clear()  # what is inside a run is no run
      yield pathlib.Path(folder)


def _within_store(path: epath.Path) -> Iterator[epath.Path]:
  """Run directories in a store, without listing the checkpoints of each."""
  inner = sorted(path.iterdir())
  if {layout.CONFIG, layout.METADATA} <= {entry.name for entry in inner}:
    yield path
    return
  for entry in inner:
    if not entry.name.startswith('.') and entry.is_dir():
      yield from _within_store(entry)


def local_copy(run: epath.PathLike) -> pathlib.Path:
  """The folder in which the small files of a run can be read locally.

  That is the run directory itself; of a run in an object store it is a copy,
  which this call brings up to date.
  """
  if not files.is_remote(run):
    return pathlib.Path(run)
  run = epath.Path(run)
  name = hashlib.sha256(os.fspath(run).encode()).hexdigest()[:16]
  folder = files.scratch() / name
  folder.mkdir(exist_ok=True)
  for file in (
    layout.CONFIG, layout.METADATA, layout.METRICS, layout.SUMMARY
  ):  # fmt: skip
    with contextlib.suppress(FileNotFoundError):
      written = object_stores.modified(run / file)
      (folder / file).write_bytes((run / file).read_bytes())
      os.utime(folder / file, (written, written))
  return folder


def load(run: epath.PathLike) -> Run:
  """Reads a run directory, local or remote.

  Raises:
    UserError: it is no run, or its files are damaged.
  """
  path = local_copy(run)
  if not is_run(path):
    raise UserError(
      f'{os.fspath(run)} is not a run directory; craft runs list shows those '
      'there are'
    )
  name = os.fspath(files.as_path(run))
  config, metadata = (
    _json(path / file, name) for file in (layout.CONFIG, layout.METADATA)
  )
  try:
    summary = _json(path / layout.SUMMARY, name)
  except UserError:
    summary = {}
  return Run(
    path=path,
    name=name,
    settings={RENAMED.get(n, n): v for n, v in flattened(config)},
    metadata=_renamed(metadata),
    summary=_renamed(summary),
    digest=digest.read(path),
    status=status_of(run, metadata),
    age=max(time.time() - _last_write(path), 0.0),
  )


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
  """What a run of any version wrote, under the names of this version."""
  return {_RENAMED.get(name, name): value for name, value in values.items()}


def load_all(paths: Iterable[epath.PathLike]) -> tuple[list[Run], list[str]]:
  """The runs that can be read, and a note on each that cannot."""
  runs, notes = [], []
  for path in paths:
    try:
      runs.append(load(path))
    except UserError as e:
      notes.append(str(e))
  return runs, notes


def status_of(path: epath.PathLike, metadata: Mapping[str, Any]) -> str:
  """The state of a run, by what it said last and whether it still lives.

  On a file system without locks, where it cannot be told whether a run lives,
  what the run says is believed.
  """
  status = metadata.get('status') or _status_in_words(metadata)
  if status == layout.RUNNING and is_held(path) is False:
    return layout.DEAD
  return status


def _status_in_words(metadata: Mapping[str, Any]) -> str:
  """The status of a run of a version that wrote only a reason."""
  reason = str(metadata.get('exit_reason', ''))
  if reason in (layout.RUNNING, layout.FINISHED):
    return reason
  if reason.startswith(('stopped at', 'interrupted')):
    return layout.STOPPED
  return layout.FAILED


def flattened(tree: Mapping[str, Any], prefix: str = '') -> Iterator[Any]:
  """`('model.width', 256)` of each setting in a saved config."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flattened(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def sample_of(run: Run) -> tuple[int, str] | None:
  """Step and text of the last sample, or None."""
  return _last_of(run, 'text', str)


def edits_of(run: Run) -> tuple[int, list[tuple[str, str, int]]] | None:
  """Step and edits of the last evaluation that has them, or None.

  An edit is what the reference has, what the completion has in its place, and
  how often that occurred; the most frequent come first.
  """

  def edits(rows: Any) -> list[tuple[str, str, int]]:
    return [
      (str(row['reference']), str(row['completion']), int(row['count']))
      for row in rows
    ]

  return _last_of(run, 'val_edits', edits)


def _last_of(
  run: Run, key: str, read: Callable[[Any], _T]
) -> tuple[int, _T] | None:
  """Step and value of the last row that has a key, damaged ones left out."""
  found, quoted = None, strict_json.dumps(key).encode()
  with open(run.path / layout.METRICS, 'rb') as file:
    for line in file:
      if quoted in line:
        try:
          row = json.loads(line)
          found = int(row['step']), read(row[key])
        except (ValueError, KeyError, TypeError):
          continue
  return found


def _json(path: pathlib.Path, run: str) -> dict[str, Any]:
  shown = os.path.join(run, path.name)  # `path` may be a copy
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError) as e:
    raise UserError(f'{shown} is damaged ({e}); it is left out') from e
  if not isinstance(found, dict):
    raise UserError(f'{shown} is damaged (no object); it is left out')
  return found


def _last_write(path: pathlib.Path) -> float:
  times = [
    (path / name).stat().st_mtime
    for name in (layout.METRICS, layout.METADATA)
    if (path / name).exists()
  ]
  return max(times, default=0.0)
