"""Disks that fill up, vanish and lie; a folder that two runs want."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess

import pytest
import runs

from craft_jax.errors import UserError
from craft_jax.main import main
from craft_jax.runs import checkpoint
from craft_jax.runs.lock import Lock
from craft_jax.runs.writers import JsonlWriter


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 8 MB, or None where this user may not mount one."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
  try:
    made = subprocess.run(command, capture_output=True).returncode == 0
  except OSError:
    made = False
  yield folder if made else None
  if made:
    subprocess.run(['umount', '-l', str(folder)], check=True)


def _fill(folder):
  """Leaves no byte free; what to delete to free them again."""
  path = folder / 'ballast'
  with contextlib.suppress(OSError), open(path, 'wb', buffering=0) as f:
    for size in (1 << 16, 1 << 12, 1):
      with contextlib.suppress(OSError):
        while f.write(bytes(size)):
          pass
  return path


@pytest.mark.slow
def test_a_full_disk(tmp_path, text, straight, small_disk):
  """It fills up under a run, which ends in one line and goes on later."""
  if small_disk is None:
    pytest.skip('may not mount a file system: see the injected one below')
  workdir = small_disk / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  process = runs.start(*arguments, slow=['steps'])
  runs.wait_until(lambda: checkpoint.steps(workdir), process)
  ballast = _fill(small_disk)
  stderr = runs.finish(process)
  assert process.returncode == 2, stderr
  assert 'trying again' in stderr or 'training goes on' in stderr
  assert 'could not save step 60' in stderr.splitlines()[-1]
  assert 'Traceback' not in stderr
  left = checkpoint.steps(workdir)
  assert left and checkpoint.find_damage(workdir, left[-1]) == ''
  ballast.unlink()
  process = runs.start(*arguments)
  stderr = runs.finish(process)
  assert process.returncode == 0, stderr
  assert runs.digests(workdir) == runs.digests(straight)
  assert runs.repeatable(workdir) == runs.repeatable(straight)


_FULL_FOR_A_WHILE = """
import errno, os, pathlib
from craft_jax.runs.checkpoint import writer
owner = writer.ocp.AsyncCheckpointer
whole = owner.save
def sometimes(self, directory, *args, **kwargs):
  if pathlib.Path(directory).name in ('20', '30'):
    print('no room for', directory)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  return whole(self, directory, *args, **kwargs)
owner.save = sometimes
"""


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while(tmp_path, text, straight):
  """What could not be written is written later; the run does not end."""
  workdir = tmp_path / 'run'
  process = runs.start(
    'train', *runs.flags(text), f'--workdir={workdir}', '--quiet',
    first=_FULL_FOR_A_WHILE,
  )  # fmt: skip
  stdout, stderr = process.communicate(timeout=240)
  assert process.returncode == 0, stderr
  assert stdout.count('no room for') == 2
  assert runs.digests(workdir) == runs.digests(straight)


def test_rows_wait_for_a_disk(tmp_path, monkeypatch):
  said = []
  writer = JsonlWriter(tmp_path, 0, said.append)
  writer.log(1, {'a': 1})
  whole = writer._file

  class Full:
    closed = False
    truncate, close = whole.truncate, whole.close

    def write(self, data):
      whole.write(data[: len(data) // 2])  # as a disk does that fills up
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  writer._file = Full()
  writer.log(2, {'a': 2})
  writer.log(3, {'a': 3})
  assert len(said) == 1 and 'takes no rows now' in said[0]
  path = tmp_path / 'metrics.jsonl'
  assert path.read_text() == '{"step": 1, "a": 1}\n'
  writer._file = whole
  writer.log(4, {'a': 4})
  writer.close()
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['step'] for row in rows] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(tmp_path, text, capsys):
  target = tmp_path / 'file'
  target.write_text('')
  flags = runs.flags(text)
  assert main(['train', *flags, f'--workdir={target}/run']) == 2
  assert 'craft: ' in capsys.readouterr().err
  locked = tmp_path / 'locked'
  locked.mkdir()
  locked.chmod(0o500)
  try:
    with open(locked / 'probe', 'w'):
      return  # root writes anywhere
  except OSError:
    assert main(['train', *flags, f'--workdir={locked}/run']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'Permission denied' in error


@pytest.mark.slow
def test_a_read_only_disk(tmp_path, text, small_disk):
  """Root writes into any folder, but not to a disk that is read-only."""
  if small_disk is None:
    pytest.skip('may not mount a file system')
  workdir = small_disk / 'run'
  process = runs.start(
    'train', *runs.flags(text), f'--workdir={workdir}', '--stop-at-step=10'
  )
  assert runs.finish(process) is not None and process.returncode == 0
  remount = ['mount', '-o', 'remount,ro', str(small_disk)]
  subprocess.run(remount, check=True)
  process = runs.start('train', *runs.flags(text), f'--workdir={workdir}')
  stderr = runs.finish(process)
  assert process.returncode == 2
  assert stderr.count('\n') == 1 and 'Read-only file system' in stderr
  assert checkpoint.find_damage(workdir, 10) == ''


@pytest.mark.slow
@pytest.mark.parametrize('what', ['newest cut', 'newest gone', 'all gone'])
def test_checkpoints_that_go_under_the_run(tmp_path, text, straight, what):
  """The run goes on and saves again; the end is the straight run's."""
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  process = runs.start(*arguments, slow=['steps'])
  runs.wait_until(lambda: len(runs.rows(workdir)) > 24, process)
  newest = workdir / 'checkpoints' / str(checkpoint.steps(workdir)[-1])
  if what == 'all gone':
    # At once, though a save may be under way in it.
    (workdir / 'checkpoints').rename(tmp_path / 'gone')
  elif what == 'newest gone':
    shutil.rmtree(newest)
  else:
    for path in newest.rglob('*'):
      if path.is_file() and 'd' in path.parts:  # where the arrays are
        os.truncate(path, path.stat().st_size // 2)
  stderr = runs.finish(process)
  assert process.returncode == 0, stderr
  assert runs.digests(workdir) == runs.digests(straight)


@pytest.mark.slow
def test_a_corrupt_newest_checkpoint(tmp_path, text, straight):
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  process = runs.start(*arguments, slow=['steps'])
  runs.wait_until(lambda: len(runs.rows(workdir)) > 34, process)
  process.send_signal(signal.SIGTERM)
  runs.finish(process)
  before, newest = checkpoint.steps(workdir)[-2:]
  folder = workdir / 'checkpoints' / str(newest)
  largest = max(folder.rglob('*'), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  process = runs.start(*arguments)
  stderr = runs.finish(process)
  assert process.returncode == 0, stderr
  assert f'checkpoint {newest} is damaged and passed over' in stderr
  assert before < newest
  assert runs.digests(workdir) == runs.digests(straight)
  assert runs.repeatable(workdir) == runs.repeatable(straight)


@pytest.mark.slow
def test_two_runs_in_one_folder(tmp_path, text):
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  first = runs.start(*arguments, slow=['steps'])
  runs.wait_until(lambda: runs.rows(workdir), first)
  second = runs.start(*arguments)
  stderr = runs.finish(second)
  assert second.returncode == 2
  assert stderr.count('\n') == 1
  assert f'is in use by process {first.pid} on ' in stderr
  assert first.poll() is None
  first.kill()
  first.communicate()
  with contextlib.closing(Lock(workdir)):  # the kernel has let go
    pass


def test_lock_leaves_no_folder_behind(tmp_path):
  lock = Lock(tmp_path / 'a' / 'b')
  with pytest.raises(UserError, match='is in use by process'):
    Lock(tmp_path / 'a' / 'b')
  lock.close()
  lock.close()
  assert not (tmp_path / 'a').exists()
  (tmp_path / 'c').mkdir()
  Lock(tmp_path / 'c').close()
  assert (tmp_path / 'c').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'what', ['moved', 'removed', 'files', 'rows', 'copied', 'replaced']
)
def test_the_folder_goes_under_the_run(tmp_path, text, straight, what):
  """What is missing is written anew; another run's folder is left alone."""
  workdir, aside = tmp_path / 'run', tmp_path / 'aside'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}']
  process = runs.start(*arguments, slow=['steps'])
  runs.wait_until(lambda: len(runs.rows(workdir)) > 33, process)
  workdir.rename(aside)
  if what == 'removed':
    shutil.rmtree(aside, ignore_errors=True)
  elif what == 'files':
    for name in ('config.json', 'metadata.json', 'metrics.jsonl'):
      (aside / name).unlink()
    aside.rename(workdir)
  elif what == 'rows':
    (aside / 'metrics.jsonl').unlink()
    aside.rename(workdir)
  elif what == 'copied':
    ignore = shutil.ignore_patterns('*orbax*')  # a save under way
    shutil.copytree(aside, workdir, dirs_exist_ok=True, ignore=ignore)
  elif what == 'replaced':
    shutil.copytree(straight, workdir)
  stderr = runs.finish(process)
  assert 'Traceback' not in stderr
  if what == 'replaced':
    assert process.returncode == 1, stderr
    assert 'is another folder now' in stderr.splitlines()[-1]
    assert runs.digests(workdir) == runs.digests(straight)
    assert runs.rows(workdir) == runs.rows(straight)
    return
  assert process.returncode == 0, stderr
  said = {
    'moved': 'was removed or moved while training',
    'removed': 'was removed or moved while training',
    'files': 'had lost config.json and metadata.json',
  }.get(what, 'metrics.jsonl was removed or replaced')
  assert said in stderr
  assert runs.digests(workdir) == runs.digests(straight)
  assert runs.repeatable(workdir) == runs.repeatable(straight)
  assert main([*arguments, '--quiet']) == 0  # it can be gone on with


@pytest.mark.slow
def test_a_disk_too_small_is_refused_at_the_start(
  tmp_path, text, small_disk, capsys
):
  if small_disk is None:
    pytest.skip('may not mount a file system')
  flags = runs.flags(text, 'model.width=512', 'train.steps=4')
  assert main(['train', *flags, f'--workdir={small_disk}/run']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert re.search(r'\d+ checkpoints? of [\d.]+ .?B need', error)
  assert 'give a --workdir on another' in error
  assert list(small_disk.iterdir()) == []


@pytest.mark.slow
def test_lost_rows_and_other_versions_are_told_of(tmp_path, text, capsys):
  workdir = tmp_path / 'run'
  arguments = ['train', *runs.flags(text), f'--workdir={workdir}', '--quiet']
  assert main([*arguments, '--stop-at-step=10']) == 0
  assert main([*arguments, '--stop-at-step=12']) == 0
  assert capsys.readouterr().err == ''
  lines = (workdir / 'metrics.jsonl').read_text().splitlines(keepends=True)
  lines[2] = lines[2][:10] + '\n'
  del lines[5:7]
  (workdir / 'metrics.jsonl').write_text(''.join(lines))
  path = workdir / 'metadata.json'
  found = json.loads(path.read_text())
  found['packages']['jaxlib'], found['python'] = '0.0.1', '2.7.18'
  path.write_text(json.dumps(found))
  assert main([*arguments, '--stop-at-step=14']) == 0
  error = capsys.readouterr().err
  # Two are gone and one is cut.
  assert 'lacks 3 row(s) that it had when step 12' in error
  assert 'Python 2.7.18 is now ' in error and 'jaxlib 0.0.1 is now ' in error
  assert main([*arguments, '--stop-at-step=16']) == 0
  assert 'may round otherwise' not in capsys.readouterr().err
