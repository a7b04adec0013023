"""Cache of prepared token arrays: written atomically, verified on load.

An entry is a folder with one `.npy` per split and `corpus.json`, which holds
facts about the corpus, size and sha256 of each array, and its own sha256.
"""

import hashlib
import json
import logging
import os
import pathlib
import secrets
import shutil
from typing import Any

import numpy as np

from craft_jax.errors import UserError

_log = logging.getLogger(__name__)
_INDEX = 'corpus.json'

Entry = tuple[dict[str, Any], dict[str, np.ndarray]]


def load(folder: pathlib.Path, warn: bool = True) -> Entry | None:
  """Loads the facts and the memory-mapped, read-only arrays of an entry.

  Returns None if there is no entry or it is damaged; logs damage if `warn`.
  """
  if not folder.is_dir():
    return None
  try:
    stored = json.loads((folder / _INDEX).read_text('utf-8'))
    facts = stored['facts']
    if _digest_of(facts) != stored['sha256']:
      raise ValueError(f'{_INDEX} does not match its sha256')
    arrays = {
      name: _load_array(folder / f'{name}.npy', file)
      for name, file in stored['facts']['files'].items()
    }
  except (OSError, ValueError, KeyError, TypeError) as e:
    if warn:
      _log.warning('prepared corpus %s is damaged (%s): rebuilding', folder, e)
    return None
  return facts, arrays


def _load_array(path: pathlib.Path, expected: dict[str, Any]) -> np.ndarray:
  if path.stat().st_size != expected['size']:
    raise ValueError(f'{path.name} has another size')
  if _file_digest(path) != expected['sha256']:
    raise ValueError(f'{path.name} does not match its sha256')
  # A plain array, because indexing an np.memmap is slower.
  return np.asarray(np.load(path, mmap_mode='r', allow_pickle=False))


def store(
  folder: pathlib.Path, facts: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
  """Writes an entry atomically, replacing a damaged one.

  If two processes write the same entry, the first wins: both are equal.

  Raises:
    UserError: the folder cannot be written.
  """
  # Not `tempfile`: only the owner can read its folders, and caches are shared.
  partial = folder.parent / f'.partial-{secrets.token_hex(8)}'
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    files = {}
    for name, array in arrays.items():
      path = partial / f'{name}.npy'
      with open(path, 'wb') as file:
        np.save(file, array, allow_pickle=False)
        _sync(file)
      files[name] = {'size': path.stat().st_size, 'sha256': _file_digest(path)}
    facts = facts | {'files': files}
    stored = {'facts': facts, 'sha256': _digest_of(facts)}
    with open(partial / _INDEX, 'w', encoding='utf-8') as file:
      json.dump(stored, file, indent=1)
      _sync(file)
    _put(partial, folder)
  except OSError as e:
    raise UserError(
      f'cannot write prepared data to {folder.parent}: {e.strerror or e}; set '
      '--config.data.cache_dir=DIR to a folder that can be written'
    ) from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _put(partial: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames the finished entry into place, replacing a damaged one."""
  if load(folder, warn=False) is not None:
    return  # another process was faster, and may be reading
  if folder.exists():
    damaged = partial.with_suffix('.damaged')
    os.replace(folder, damaged)
    shutil.rmtree(damaged, ignore_errors=True)
  try:
    os.replace(partial, folder)
  except OSError:
    if load(folder, warn=False) is None:
      raise


def _sync(file: Any) -> None:
  file.flush()
  os.fsync(file.fileno())


def _digest_of(facts: dict[str, Any]) -> str:
  text = json.dumps(facts, sort_keys=True)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()


def _file_digest(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
