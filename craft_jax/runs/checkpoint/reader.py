"""Reads checkpoints: which there are, whether they are whole, their arrays."""

import hashlib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from craft_jax.errors import UserError, one_line
from craft_jax.runs import metric_table
from craft_jax.runs.checkpoint import staging
from craft_jax.runs.checkpoint.meta import (
  Meta,
  OtherVersion,
  leaf_paths,
  tree_sha256,
)
from craft_jax.runs.checkpoint.staging import FILES, walk
from craft_jax.runtime import files, object_stores

FOLDER = 'checkpoints'
METRICS = 'metrics.json'
_STEP = re.compile(r'0|[1-9][0-9]*')
_MOST_COMPRESSED = 64  # by a writer that compresses; noise hardly shrinks
Warn = Callable[[str], None]
Which = int | str  # a step, 'latest' or 'best'
# What Orbax, TensorStore and the file layer raise on damaged or full storage.
STORAGE_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)
_CLEARLY = 1.01  # times the least loss: evaluations differ by less
_WITH_SUMS = ('state/', 'meta/')  # what `files.json` lists
# Files whose sums were right, as (size, times, inode): a server that looks for
# newer steps hashes each once.
_hashed: dict[str, tuple[int, ...]] = {}


def steps(workdir: epath.PathLike) -> list[int]:
  """The committed steps in ascending order; [] where there are none."""
  folder = epath.Path(workdir) / FOLDER
  if not files.is_remote(folder):  # a rename commits a step: its name tells
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if _STEP.fullmatch(name))
  # Not by `is_dir`, which takes a store that fails for one without the folder:
  # the run would start over.
  try:
    names = [path.name for path in folder.iterdir()]
  except FileNotFoundError:
    names = []
  if staging.is_staged(folder):
    numbers = [int(name) for name in names if _STEP.fullmatch(name)]
    return [n for n in sorted(numbers) if _is_sent(folder / str(n))]
  if not names:
    return []
  found = ocp.step.standard_name_format().find_all(folder)
  return sorted(metadata.step for metadata in found)


def _is_sent(path: epath.Path) -> bool:
  try:
    return FILES in {file.name for file in path.iterdir()}
  except FileNotFoundError:  # deleted meanwhile
    return False


def open_meta(workdir: epath.PathLike, step: int) -> Meta:
  """Reads what step `step` holds besides arrays, without loading any.

  Raises:
    OtherVersion: this version does not know all that it holds.
    UserError: no such step, damaged, or not a checkpoint of ours.
  """
  path = step_path(workdir, step)
  try:
    tree = json.loads((path / 'meta' / 'metadata').read_text())
    if (path / METRICS).exists():  # evaluated after it was saved
      tree['metrics'] = json.loads((path / METRICS).read_text())
    return Meta.from_tree(tree)
  except UserError as e:
    raise type(e)(f'{path} cannot be read: {e}') from e
  except (OSError, ValueError) as e:
    raise UserError(
      f'{path} is not a checkpoint of craft, or is damaged ({one_line(e)}); '
      'give another --workdir or --step'
    ) from e


def best_step(workdir: epath.PathLike) -> int | None:
  """The readable step that is best by `checkpoint.best`, or None."""
  return best_of(readable(workdir))


def readable(workdir: epath.PathLike) -> dict[int, Meta]:
  metas = {}
  for step in steps(workdir):
    try:
      metas[step] = open_meta(workdir, step)
    except UserError:
      continue  # resolve_step says so when it matters
  return metas


def best_of(metas: Mapping[int, Meta]) -> int | None:
  """The best step by `checkpoint.best`, the first of equals, or None."""
  ranks = {s: rank_in(metas, s) for s in metas}
  ranks = {s: rank for s, rank in ranks.items() if rank < math.inf}
  return min(ranks, key=lambda s: (ranks[s], s)) if ranks else None


def metric_of(metas: Mapping[int, Meta]) -> str:
  """The metric that orders the checkpoints: that of the latest of them."""
  return metas[max(metas)].config.checkpoint.best


def rank_in(metas: Mapping[int, Meta], step: int) -> float:
  """Of a step; the least is the best, infinity without an evaluation."""
  return metric_table.rank(metric_of(metas), metas[step].metrics)


def resolve_step(
  workdir: epath.PathLike,
  which: Which = 'latest',
  warn: Warn | None = None,
  every: int = 1,
) -> int:
  """The step to open, checked file by file.

  Args:
    workdir: the run directory.
    which: a step, 'latest', or 'best' (by `checkpoint.best`; the latest where
      no evaluation was saved).
    warn: told of each damaged checkpoint that 'latest' or 'best' passes
      over, and of one without sums; standard error by default.
    every: 'latest' or 'best' of the steps that are multiples of this.

  Raises:
    UserError: no checkpoint there, or none that is whole; for a given step:
      that one is missing or damaged.
  """
  found = _require_steps(workdir)
  if which not in ('latest', 'best'):
    if not str(which).isdecimal():
      raise UserError(f'--step={which} must be a number, latest or best')
    if int(which) not in found:
      raise UserError(
        f'{epath.Path(workdir)} has no step {which}; it has '
        f'{", ".join(map(str, found))}'
      )
    damage = find_damage(workdir, int(which))
    if damage:
      raise UserError(f'checkpoint {which} is damaged: {damage}; use another')
    return _said(workdir, int(which), warn or to_stderr)
  order = [step for step in found[::-1] if step % every == 0]
  best = best_step(workdir) if which == 'best' else None
  if best is not None:
    order = [best, *(s for s in order if s != best)]
  for step in order:
    damage = find_damage(workdir, step)
    if not damage:
      return _said(workdir, step, warn or to_stderr)
    (warn or to_stderr)(
      f'checkpoint {step} is damaged and passed over: {damage}'
    )
  raise UserError(
    f'every checkpoint in {epath.Path(workdir) / FOLDER} is damaged; restore '
    'a copy or start over with another --workdir'
  )


def step_to_use(
  workdir: epath.PathLike, which: Which = 'latest', warn: Warn | None = None
) -> int:
  """As `resolve_step`; says by how much 'best' is better than 'latest'.

  For who uses a model as it is. A run that goes on takes the latest anyway.
  """
  step = resolve_step(workdir, which, warn)
  if which == 'latest':
    metas = readable(workdir)
    best = best_of(metas)
    if best is not None and step in metas and rank_in(metas, step) < math.inf:
      metric = metric_of(metas)
      least, here = (metas[s].metrics[metric] for s in (best, step))
      if _clearly_apart(least, here):
        change = f'{abs(here / least - 1):.0%}' if least else f'{here:.4f}'
        (warn or to_stderr)(
          f'step {best} is better than the latest, {step}: {metric} '
          f'{least:.4f}, not {here:.4f} ({change} '
          f'{"more" if here > least else "less"}); --step=best takes it'
        )
  return step


def _clearly_apart(best: float, here: float) -> bool:
  low, high = sorted((best, here))
  return _CLEARLY * low < high


def _said(workdir: epath.PathLike, step: int, warn: Warn) -> int:
  """The step; says so if nothing but its arrays could be looked at."""
  if not has_sums(workdir, step):
    warn(
      f'checkpoint {step} has no {FILES}: its arrays can be read, but nothing '
      'tells whether they are those that were written'
    )
  return step


def find_damage(workdir: epath.PathLike, step: int) -> str:
  """One line on what is wrong with a committed step, or ''.

  Compares the size and sha256 of every file, once in a process for a file that
  stays as it is, and opens the arrays. Where a kill came between the commit
  and `files.json`, the arrays are read instead.
  """
  try:
    open_meta(workdir, step)
    path = staging.local(step_path(workdir, step))
    if not has_sums(workdir, step):
      restore_raw(workdir, step)
      return ''
    wanted = json.loads((path / FILES).read_text())
    if not isinstance(wanted, dict):
      return 'files.json is not ours'
    for file in walk(path):
      name = os.fspath(file.relative_to(path))
      if name.startswith(_WITH_SUMS) and name not in wanted:
        return f'files.json does not list {name}'
    # Sizes first: a cut file is the likely damage and costs nothing to see.
    for name, (size, _) in wanted.items():
      if not (path / name).is_file():
        return f'{name} is missing'
      actual = (path / name).stat().length
      if actual != size:
        return f'{name} has {actual} of {size} bytes'
    for name, (_, digest) in wanted.items():
      seen = _identity(path / name)
      if seen and _hashed.get(os.fspath(path / name)) == seen:
        continue
      if file_sha256(path / name) != digest:
        return f'{name} has changed since it was written'
      _hashed[os.fspath(path / name)] = seen
    stored_arrays(path / 'state')  # whole files may not be whole arrays
  except (staging.NoRoom, OtherVersion):
    raise
  except UserError as e:
    return str(e)
  except STORAGE_ERRORS as e:
    if object_stores.is_failure(e) and not isinstance(e, FileNotFoundError):
      raise  # it may be whole: nobody could look
    return one_line(e)
  return ''


def has_sums(workdir: epath.PathLike, step: int) -> bool:
  """Whether there is a `files.json` to compare the files of a step with."""
  return (step_path(workdir, step) / FILES).exists()


def _identity(path: epath.Path) -> tuple[int, ...]:
  """What changes when a file does; () where nothing tells."""
  if files.is_remote(path):
    there = path.stat()
    return (there.length, there.mtime) if there.mtime else ()
  s = os.stat(path)
  return s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_dev, s.st_ino


def restore_raw(workdir: epath.PathLike, step: int) -> dict[str, Any]:
  """The state as stored: nested dicts and lists of NumPy arrays.

  Knows nothing of the model or the optimizer; for inspection.

  Raises:
    UserError: the arrays claim to be far larger than the files are.
  """
  path = staging.local(step_path(workdir, step)) / 'state'
  handler = ocp.PyTreeCheckpointHandler()
  stored = stored_arrays(path)
  claimed = sum(
    math.prod(a.shape) * np.dtype(a.dtype).itemsize
    for a in jax.tree.leaves(stored)
  )
  there = sum(file.stat().length for file in walk(path))
  if claimed > _MOST_COMPRESSED * there + (1 << 26):
    raise UserError(
      f'{path.parent} claims {claimed:,} bytes of arrays in {there:,} bytes of '
      'files; it was not written by craft'
    )
  how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
  return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))


def report(workdir: epath.PathLike, which: Which = 'latest') -> dict[str, Any]:
  """What a checkpoint holds, in JSON values, for `craft inspect --json`.

  `params_sha256`, `opt_state_sha256` and `ema_sha256` (None without EMA) are
  `tree_sha256` of the stored trees; equal digests mean equal bits.

  Raises:
    UserError: see `resolve_step`.
  """
  step = step_to_use(workdir, which)
  meta = open_meta(workdir, step)
  state = restore_raw(workdir, step)
  params, _ema = leaf_paths(state['params']), state['ema']
  tree = meta.to_tree()
  return {
    'workdir': str(workdir),
    'step': step,
    'steps': steps(workdir),
    'best_step': best_step(workdir),
    'params': sum(a.size for a in params.values()),
    'data_offset': int(state['data_offset']),
    'params_sha256': tree_sha256(state['params']),
    'opt_state_sha256': tree_sha256(state['opt_state']),
    'ema_sha256': tree_sha256(state['ema'])
    if leaf_paths(state['ema'])
    else None,
    'arrays': [
      {'name': name, 'shape': list(a.shape), 'dtype': a.dtype.name}
      for name, a in params.items()
    ],
    'config': tree['config'],
    'vocabulary': tree['vocabulary'] | {'size': meta.vocabulary.size},
    'corpus_fingerprint': meta.fingerprint,
    'metrics': tree['metrics'],
    'withheld': meta.withheld,
  }


def restore_params(
  workdir: epath.PathLike, step: int, abstract_params: Any, *, ema: bool = True
) -> Any:
  """Only the parameters: the averaged ones where the run kept them.

  Args:
    workdir: the run directory.
    step: from `resolve_step`.
    abstract_params: `ShapeDtypeStruct` tree with the wanted shardings.
    ema: False takes the raw parameters even where an average exists.

  Raises:
    UserError: an array is missing or of another shape or dtype, named.
  """
  path = staging.local(step_path(workdir, step)) / 'state'
  stored = stored_arrays(path)
  name = 'ema' if ema and leaf_paths(stored.get('ema')) else 'params'
  check_matches({name: stored.get(name)}, {name: abstract_params}, path.parent)
  return restore_tree(path, {name: abstract_params}, partial=True)[name]


def restore_tree(path: epath.Path, abstract: Any, partial: bool = False) -> Any:
  how = ocp.checkpoint_utils.construct_restore_args(abstract)
  return ocp.PyTreeCheckpointHandler().restore(
    path,
    args=ocp.args.PyTreeRestore(
      item=abstract, restore_args=how, partial_restore=partial
    ),
  )


def stored_arrays(path: epath.Path) -> Any:
  """Shapes and dtypes of the arrays at `path`, each opened but not read.

  Raises:
    UserError: they were not written to the end.
  """
  # Opening one after the other would fail as well, in threads and words of
  # their own.
  if not ocp.type_handlers.is_ocdbt_checkpoint(path):
    raise UserError(f'{path} holds no index of its arrays')
  return ocp.PyTreeCheckpointHandler().metadata(path).tree


def check_matches(stored: Any, abstract: Any, path: epath.Path) -> None:
  """Raises UserError naming the first array that differs."""
  have, want = leaf_paths(stored), leaf_paths(abstract)
  for name in sorted(have.keys() | want.keys()):
    if name not in have:
      problem = f'lacks {name}, which these settings need'
    elif name not in want:
      problem = f'holds {name}, which these settings do not have'
    else:
      before = f'{np.dtype(have[name].dtype).name}{list(have[name].shape)}'
      after = f'{np.dtype(want[name].dtype).name}{list(want[name].shape)}'
      if before == after:
        continue
      problem = f'holds {name} as {before}, these settings need {after}'
    raise UserError(
      f'{path} {problem}; use the settings it was trained with (craft inspect)'
    )


def _require_steps(workdir: epath.PathLike) -> list[int]:
  path = epath.Path(workdir)
  flag = shlex.quote(f'--workdir={path}')
  if not path.exists():
    raise UserError(f'no run directory {path}; train with {flag}')
  if not path.is_dir():
    raise UserError(f'{path} is a file, not a run directory')
  found = steps(path)
  if not found:
    raise UserError(f'{path} holds no checkpoint; train with {flag} first')
  return found


def step_path(workdir: epath.PathLike, step: int) -> epath.Path:
  return folder_of(workdir) / str(step)


def folder_of(workdir: epath.PathLike) -> epath.Path:
  """Where checkpoints are, absolute, since Orbax takes no relative paths."""
  folder = epath.Path(workdir) / FOLDER
  if files.is_remote(folder):
    return folder
  return files.LocalPath(os.path.abspath(folder))


def file_sha256(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open('rb') as f:
    while block := f.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def to_stderr(text: str) -> None:
  print(f'craft: {text}', file=sys.stderr)
