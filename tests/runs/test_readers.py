"""Digest and columns: the same as reading every row, however the file grew."""

import os

import numpy as np
import pytest

from craft_jax.runs import columns, digest, listing, tail
from craft_jax.runs.lock import Lock


@pytest.fixture(params=['arrow', 'plain'])
def parser(request, monkeypatch):
  """With pyarrow, and as if it were not installed."""
  if request.param == 'plain':
    monkeypatch.setattr(
      columns, '_parsed', lambda block: columns._parsed_slowly(block)
    )
  return request.param


def fresh(path):
  """What is read with no cache at all."""
  for name in (digest.DIGEST, columns.COLUMNS):
    (path / name).unlink(missing_ok=True)
  return digest.read(path), columns.read(path, 'train', ['loss', 'seconds'])


def same(a, b):
  assert a[0] == b[0]
  assert list(a[1]) == list(b[1])
  for name in a[1]:
    np.testing.assert_array_equal(a[1][name], b[1][name])


def test_digest(make_run):
  path = make_run('a', [3.0, 2.0, 2.5])
  found = digest.read(path)
  assert found.step == 30 and found.evaluations == 3
  assert found.best['val_loss'] == 2.0 and found.best['step'] == 20
  assert found.final['val_loss'] == 2.5
  assert found.last['loss'] == 2.4 and 'val_classes' not in found.final
  assert digest.read(path) == found  # now from the cache


def test_columns(make_run, parser):
  path = make_run('a', [3.0, 2.0])
  make_run.append(
    path,
    {'step': 21, 'skipped': 'the loss is not finite'},
    make_run.row(22, None, grad_norm=1),
    {'step': 22, 'text': 'a "val_loss" \ud800 \u2028'},
    make_run.row(23, 1, utilisation=0.5),
  )
  train = columns.read(path, 'train', ['loss', 'utilisation', 'nothing'])
  assert list(train) == ['step', 'loss', 'utilisation']
  assert train['step'].tolist() == [*range(1, 21), 22, 23]
  np.testing.assert_array_equal(train['loss'][-3:], [1.9, np.nan, 1])
  np.testing.assert_array_equal(train['utilisation'][-2:], [np.nan, 0.5])
  found = columns.read(path, 'eval', ['val_loss', 'seconds'])
  assert found['val_loss'].tolist() == [3.0, 2.0]
  assert found['seconds'].tolist() == [20.0, 40.0]
  assert digest.read(path).evaluations == 2  # the sample is no evaluation


def test_a_file_that_grows_is_read_on(make_run, parser, monkeypatch):
  path = make_run('a', [3.0])
  digest.read(path), columns.read(path, 'train', ['loss'])
  blocks = []
  whole = tail.whole_lines

  def noted(path, offset):
    blocks.append(offset)
    return whole(path, offset)

  monkeypatch.setattr(tail, 'whole_lines', noted)
  make_run.append(path, make_run.row(11, 2.0, seconds=22.0))
  with open(path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 12, "lo')
  grown = digest.read(path), columns.read(path, 'train', ['loss', 'seconds'])
  assert min(blocks) > 0  # nothing was read twice
  assert grown[1]['loss'][-1] == 2.0 and grown[0].step == 11
  with open(path / 'metrics.jsonl', 'a') as file:
    file.write('ss": 1.5, "learning_rate": 0.1, "seconds": 24.0}\n')
  make_run.append(path, make_run.evaluation(12, 1.0))
  grown = digest.read(path), columns.read(path, 'train', ['loss', 'seconds'])
  assert grown[1]['loss'][-1] == 1.5 and grown[0].best['val_loss'] == 1.0
  same(grown, fresh(path))


def test_a_file_that_was_cut_back_is_read_anew(make_run, parser):
  """As a run does that was killed and goes on from a checkpoint."""
  path = make_run('a', [3.0, 1.0])
  digest.read(path), columns.read(path, 'train', ['loss'])
  lines = (path / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (path / 'metrics.jsonl').write_text(''.join(lines[:11]))
  for step in range(11, 41):
    make_run.append(path, make_run.row(step, 2.0, seconds=3.0 * step))
  again = digest.read(path), columns.read(path, 'train', ['loss', 'seconds'])
  assert again[0].best['val_loss'] == 3.0 and again[0].step == 40
  same(again, fresh(path))


@pytest.mark.parametrize('name', [digest.DIGEST, columns.COLUMNS])
@pytest.mark.parametrize(
  'junk', [b'', b'{}', b'\x00' * 99, b'[1]', b'PK\x03\x04']
)
def test_a_damaged_cache_is_made_again(make_run, name, junk):
  path = make_run('a')
  want = fresh(path)
  (path / name).write_bytes(junk)
  same(
    (digest.read(path), columns.read(path, 'train', ['loss', 'seconds'])), want
  )


def test_damaged_lines_are_passed_over(make_run, parser):
  path = make_run('a', [3.0])
  with open(path / 'metrics.jsonl', 'ab') as file:
    file.write(b'{"val_loss": \n\xff\xfe "loss"\n[1]\n\n')
  make_run.append(path, make_run.row(12, 1.5))
  found = columns.read(path, 'train', ['loss'])
  assert found['step'].tolist() == [*range(1, 11), 12]
  assert digest.read(path).evaluations == 1


def test_a_run_without_rows(make_run):
  path = make_run('a', [])
  assert digest.read(path).step == 0
  assert columns.read(path, 'train', ['loss'])['step'].tolist() == []
  (path / 'metrics.jsonl').unlink()
  assert digest.read(path).step == 0
  assert columns.read(path, 'eval', ['val_loss'])['step'].tolist() == []


def test_reading_leaves_a_folder_as_it_may_be_left(make_run, monkeypatch):
  """Read-only: the caches are not kept, the figures are the same."""
  path = make_run('a')

  def refuse(*args, **more):
    raise PermissionError

  monkeypatch.setattr(tail.tempfile, 'mkstemp', refuse)
  assert digest.read(path).step == 20
  assert len(columns.read(path, 'train', ['loss'])['loss']) == 20
  assert not [name for name in os.listdir(path) if name.startswith('.')]


def test_small_blocks_give_the_same(make_run, monkeypatch, parser):
  path = make_run('a', [3.0, 2.0, 1.0])
  want = fresh(path)
  monkeypatch.setattr(tail, '_BLOCK', 1000)
  same(fresh(path), want)


def test_find_and_status(make_run, tmp_path):
  for name in ('x/a', 'x/y/b', 'c', '.hidden/d'):
    make_run(name)
  make_run('x/a/checkpoints/5')  # inside a run: none
  found = listing.find([str(tmp_path), str(tmp_path / 'c')])
  assert [os.path.relpath(p, tmp_path) for p in found] == ['c', 'x/a', 'x/y/b']
  running = make_run('r', metadata={'status': 'running'})
  assert listing.load(running).status == 'dead'
  lock = Lock(running)
  assert listing.load(running).status == 'running'
  lock.close()
  for reason, status in (
    ('running', 'dead'),
    ('finished', 'finished'),
    ('stopped at step 3', 'stopped'),
    ('interrupted; step 3 is saved', 'stopped'),
    ('step 9: the loss is not finite', 'failed'),
  ):
    old = {'status': None, 'exit_reason': reason}  # of an earlier version
    path = make_run(reason[:9].replace(' ', ''), metadata=old)
    assert listing.load(path).status == status


def test_damaged_runs_are_noted(make_run, tmp_path):
  make_run('a')
  (make_run('b') / 'config.json').write_text('{')
  found, notes = listing.load_all(listing.find([str(tmp_path)]))
  assert [run.path.name for run in found] == ['a']
  assert len(notes) == 1 and 'config.json is damaged' in notes[0]
