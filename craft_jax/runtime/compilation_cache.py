"""Compiled programs on disk, so that the next start does not compile again.

JAX writes an entry in place. A kill leaves it cut short; JAX then warns and
compiles again at every start, and never mends the entry. So entries that are
newer than the last look are checked here before JAX sees them.
"""

import contextlib
import hashlib
import importlib
import os
import pathlib
import platform
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax

_ENTRY = '*-cache'
_STAMP = '.checked'
_SHORTEST = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


def use(cache_folder: pathlib.Path) -> None:
  """Keeps compiled programs in `cache_folder`, or where the user has said.

  JAX's own `JAX_COMPILATION_CACHE_DIR` goes before, and
  `JAX_ENABLE_COMPILATION_CACHE=0` turns the cache off. A folder that cannot
  be written means no cache.
  """
  settings: Any = jax.config  # its attributes are made at run time
  if not settings.jax_enable_compilation_cache:
    return
  asked = os.path.expanduser(settings.jax_compilation_cache_dir or '')
  if asked and '://' in asked:
    return  # an object store writes entries whole
  # Machines that share a home folder may have other instructions.
  folder = pathlib.Path(asked or cache_folder / 'compiled' / _processor())
  try:
    folder.mkdir(parents=True, exist_ok=True)
    drop_cut_entries(folder)
  except OSError:
    return
  if str(folder) != settings.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(folder))
  if _SHORTEST not in os.environ:
    # A start has dozens of programs that take less than JAX's own second.
    name = 'jax_persistent_cache_min_compile_time_secs'
    jax.config.update(name, 0.05)


def drop_cut_entries(folder: pathlib.Path) -> list[str]:
  """Removes entries that do not unpack; gives their names.

  Only entries written since the last call are read.

  Raises:
    OSError: the folder cannot be read or written.
  """
  stamp = folder / _STAMP
  began = time.time()
  last = stamp.stat().st_mtime if stamp.exists() else 0.0
  unpack = _unpacker()
  dropped = []
  for entry in sorted(folder.glob(_ENTRY)):
    # Another process may remove it too, or be writing it: then it loses one.
    with contextlib.suppress(FileNotFoundError):
      if entry.stat().st_mtime < last:
        continue
      try:
        unpack(entry.read_bytes())
      except Exception:  # whatever the compressor raises: it is not whole
        entry.unlink()
        dropped.append(entry.name)
  stamp.touch()
  # A little early, as clocks of file systems are coarse.
  os.utime(stamp, (began - 2, began - 2))
  return dropped


def _unpacker() -> Callable[[bytes], bytes]:
  """The decompressor that JAX takes: the first of these that is installed."""
  for name in ('compression.zstd', 'zstandard'):
    with contextlib.suppress(ImportError):
      return importlib.import_module(name).decompress
  return zlib.decompress


def _processor() -> str:
  """A short name of this processor's instruction set."""
  text = platform.machine() + platform.processor()
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as f:
    text += next((line for line in f if line.startswith('flags')), '')
  return hashlib.sha256(text.encode()).hexdigest()[:12]
