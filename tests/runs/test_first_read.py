"""Many runs read at once: the same as one after the other."""

import numpy as np
import pytest

from craft_jax.runs import columns, digest, parallel_read


def kept(path):
  return [(path / n).exists() for n in (digest.DIGEST, columns.COLUMNS)]


@pytest.mark.parametrize('rows', [False, True])
def test_processes_keep_what_a_reader_would(make_run, monkeypatch, rows):
  monkeypatch.setattr(parallel_read, '_SOON', 0)
  paths = [make_run(f'{i}', [3.0, 2.0 + i]) for i in range(3)]
  (paths[1] / 'metrics.jsonl').write_bytes(b'\xff not rows\n{"step": 3}\n')
  empty = make_run('empty', [])
  parallel_read.read([*paths, empty], rows)
  assert [kept(path) for path in paths] == 3 * [[True, rows]]
  before = {p: (p / digest.DIGEST).stat().st_mtime_ns for p in paths}
  for i in (0, 2):
    assert digest.read(paths[i]).best['val_loss'] == min(3.0, 2.0 + i)
    train = columns.read(paths[i], columns.TRAIN, ['loss'])
    np.testing.assert_allclose(train['loss'][-1], 1.9 + i)
  parallel_read.read(paths, rows)  # nothing is left to read
  assert before == {p: (p / digest.DIGEST).stat().st_mtime_ns for p in paths}
  make_run.append(paths[0], make_run.row(21, 0.5))
  assert parallel_read._unread(paths[0], rows) == len(
    (paths[0] / 'metrics.jsonl').read_bytes().splitlines(keepends=True)[-1]
  )


def test_little_is_left_to_whoever_reads_it(make_run, monkeypatch):
  path = make_run('a')
  monkeypatch.setattr(
    parallel_read.concurrent.futures, 'ProcessPoolExecutor', 0
  )
  parallel_read.read([path], rows=True)
  assert kept(path) == [False, False]
  parallel_read.read([path / 'nowhere'], rows=True)


def test_a_run_that_ends_keeps_its_columns(make_run, monkeypatch):
  path = make_run('a')
  parallel_read.keep_large(path)  # small: soon read
  assert kept(path) == [False, False]
  monkeypatch.setattr(parallel_read, '_WORTH', 1)
  parallel_read.keep_large(path)
  assert kept(path) == [True, True]
  parallel_read.keep_large(path / 'nowhere')
