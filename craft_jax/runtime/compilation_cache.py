"""JAX's persistent compilation cache, and removal of damaged entries.

JAX does not write entries atomically. A process that is killed may leave a
truncated one, with which JAX warns and recompiles at every start. Entries that
are newer than the last check are therefore verified here before JAX reads them.
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
  """Enables the compilation cache in `cache_folder`.

  `JAX_COMPILATION_CACHE_DIR` takes precedence, `JAX_ENABLE_COMPILATION_CACHE=0`
  disables the cache, and so does a folder that cannot be written.
  """
  settings: Any = jax.config  # its attributes are made at run time
  if not settings.jax_enable_compilation_cache:
    return
  asked = os.path.expanduser(settings.jax_compilation_cache_dir or '')
  if asked and '://' in asked:
    return  # object stores write atomically
  # Machines that share a home folder may differ in instruction sets.
  folder = pathlib.Path(asked or cache_folder / 'compiled' / _processor())
  try:
    folder.mkdir(parents=True, exist_ok=True)
    drop_cut_entries(folder)
  except OSError:
    return
  if str(folder) != settings.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(folder))
  if _SHORTEST not in os.environ:
    # At start, dozens of programs take less than JAX's default of 1 s.
    name = 'jax_persistent_cache_min_compile_time_secs'
    jax.config.update(name, 0.05)


def drop_cut_entries(folder: pathlib.Path) -> list[str]:
  """Removes entries that cannot be decompressed and returns their names.

  Reads only entries written since the last call.

  Raises:
    OSError: the folder cannot be read or written.
  """
  stamp = folder / _STAMP
  began = time.time()
  last = stamp.stat().st_mtime if stamp.exists() else 0.0
  unpack = _unpacker()
  dropped = []
  for entry in sorted(folder.glob(_ENTRY)):
    # Another process may remove the same entry. If it is still writing it, the
    # entry is lost, which costs one compilation.
    with contextlib.suppress(FileNotFoundError):
      if entry.stat().st_mtime < last:
        continue
      try:
        unpack(entry.read_bytes())
      except Exception:  # each decompressor has its own exceptions
        entry.unlink()
        dropped.append(entry.name)
  stamp.touch()
  # Two seconds early, because timestamps of file systems are coarse.
  os.utime(stamp, (began - 2, began - 2))
  return dropped


def _unpacker() -> Callable[[bytes], bytes]:
  """The decompressor that JAX uses: the first of these that is installed."""
  for name in ('compression.zstd', 'zstandard'):
    with contextlib.suppress(ImportError):
      return importlib.import_module(name).decompress
  return zlib.decompress


def _processor() -> str:
  """Short hash of this processor's instruction set."""
  text = platform.machine() + platform.processor()
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as f:
    text += next((line for line in f if line.startswith('flags')), '')
  return hashlib.sha256(text.encode()).hexdigest()[:12]
