"""Compiled programs that a kill has cut short are made again, once."""

import os
import subprocess
import sys
import zlib

import pytest

from craft_jax.runtime import compilation_cache

_PROGRAM = """
import pathlib, sys
import jax, jax.numpy as jnp
from craft_jax.runtime import compilation_cache
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
compilation_cache.use(pathlib.Path(sys.argv[1]))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def test_only_cut_entries_go(tmp_path):
  whole = zlib.compress(os.urandom(1000))
  (tmp_path / 'whole-cache').write_bytes(whole)
  (tmp_path / 'cut-cache').write_bytes(whole[:-7])
  (tmp_path / 'empty-cache').write_bytes(b'')
  (tmp_path / 'other').write_bytes(b'')
  assert compilation_cache.drop_cut_entries(tmp_path) == [
    'cut-cache',
    'empty-cache',
  ]
  assert {p.name for p in tmp_path.iterdir()} == {
    'whole-cache', 'other', '.checked',
  }  # fmt: skip


def test_old_entries_are_not_read_again(tmp_path, monkeypatch):
  (tmp_path / 'a-cache').write_bytes(zlib.compress(b'a'))
  os.utime(tmp_path / 'a-cache', (1, 1))
  compilation_cache.drop_cut_entries(tmp_path)
  read = []
  monkeypatch.setattr(
    compilation_cache, '_unpacker', lambda: lambda data: read.append(data)
  )
  (tmp_path / 'b-cache').write_bytes(b'new')
  assert compilation_cache.drop_cut_entries(tmp_path) == []
  assert read == [b'new']


@pytest.mark.slow
def test_jax_reads_what_was_mended(tmp_path):
  """With JAX's own entries: a cut one warns, unless it was dropped before."""
  environment = {
    k: v for k, v in os.environ.items() if 'COMPILATION_CACHE' not in k
  }

  def run():
    command = [sys.executable, '-c', _PROGRAM, str(tmp_path)]
    done = subprocess.run(
      command, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    return done.stdout.strip()

  folder = tmp_path / os.path.relpath(run(), tmp_path)
  entries = sorted(folder.glob('*-cache'))
  assert entries
  sizes = [e.stat().st_size for e in entries]
  for entry, size in zip(entries, sizes, strict=True):
    os.truncate(entry, size // 2)
  run()
  assert [e.stat().st_size for e in entries] == pytest.approx(sizes, rel=0.05)


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  compilation_cache.use(tmp_path / 'file')  # no cache, no error
