"""What a user names as an output: devices, links, modes, folders."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from craft_jax.errors import UserError
from craft_jax.runtime import files


def test_pipe_is_written_and_stays(tmp_path):
  pipe, got = tmp_path / 'pipe', []
  os.mkfifo(pipe)
  reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
  reader.start()
  files.write_atomic(pipe, 'text')
  reader.join(10)
  assert got == [b'text'] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize('exists', [True, False])
def test_link_stays_and_its_file_is_written(tmp_path, exists):
  link, target = tmp_path / 'link', tmp_path / 'far' / 'file'
  target.parent.mkdir()
  if exists:
    target.write_text('old')
  link.symlink_to('far/file')
  files.write_atomic(link, 'new')
  assert link.is_symlink() and target.read_text() == 'new'
  assert os.listdir(target.parent) == ['file']


def test_mode_is_kept_and_new_files_obey_the_umask(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  old.write_text('secret')
  old.chmod(0o600)
  before = os.umask(0o027)
  try:
    for path in (old, new):
      files.write_atomic(path, 'x')
  finally:
    os.umask(before)
  modes = [stat.S_IMODE(path.stat().st_mode) for path in (old, new)]
  assert modes == [0o600, 0o640]


def test_hard_links_keep_the_old_data(tmp_path):
  one, other = tmp_path / 'one', tmp_path / 'other'
  one.write_text('old')
  os.link(one, other)
  files.write_atomic(one, 'new')
  assert (one.read_text(), other.read_text()) == ('new', 'old')


def test_long_names_and_mistakes(tmp_path):
  long = tmp_path / ('n' * 255)
  files.write_atomic(long, 'x')
  assert long.read_text() == 'x'
  loop = tmp_path / 'loop'
  loop.symlink_to(loop)
  where = socket.socket(socket.AF_UNIX)
  unix = os.path.join(os.path.relpath(tmp_path), 's')
  where.bind(unix)
  with where:
    for path in (tmp_path, loop, tmp_path / 'no' / 'x', unix):
      with pytest.raises(OSError) as caught:
        files.write_atomic(path, 'x')
      assert caught.value.filename == os.fspath(path)
  assert loop.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root becomes another user')
def test_file_in_a_read_only_folder_is_written_in_place(tmp_path):
  script = (
    'import os, sys; os.chdir(sys.argv[1]); '
    'from craft_jax.runtime import files; '
    'os.setuid(65534); files.write_atomic("file", "new")'
  )
  path = tmp_path / 'file'
  path.write_text('a longer old text')
  path.chmod(0o666)
  tmp_path.chmod(0o755)
  subprocess.run([sys.executable, '-c', script, tmp_path], check=True)
  assert path.read_text() == 'new' and os.listdir(tmp_path) == ['file']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux has it')
def test_descriptors_and_devices(tmp_path):
  """`/dev/stdout` into a file goes on where the file is; `>(cmd)` works."""
  script = (
    'from craft_jax.runtime import files\n'
    'print("before")\n'
    'files.write_atomic("/dev/stdout", "middle\\n")\n'
    'print("after", flush=True)\n'
    'try: files.write_atomic("/dev/full", "x")\n'
    'except OSError as e: print(e.errno, e.filename)\n'
  )
  out = tmp_path / 'out'
  with out.open('w') as file:
    subprocess.run([sys.executable, '-c', script], stdout=file, check=True)
  assert out.read_text() == 'before\nmiddle\nafter\n28 /dev/full\n'
  assert stat.S_ISCHR(os.stat('/dev/full').st_mode)
  reader, writer = os.pipe()
  files.write_atomic(f'/dev/fd/{writer}', 'x')
  os.close(writer)
  assert os.read(reader, 9) == b'x'
  os.close(reader)


def test_outputs_are_checked_before_the_work(tmp_path):
  text = tmp_path / 'text'
  text.write_text('x')
  (tmp_path / 'same').symlink_to(text)
  for path, words in (
    (str(tmp_path), 'is a folder'),
    (f'{tmp_path}/new/', 'is a folder'),
    (f'{tmp_path}/no/x', 'there is no folder'),
    (f'{tmp_path}/same', 'is the input'),
  ):
    with pytest.raises(UserError, match=words):
      files.check_output(path, '--output', str(text))
  files.check_output(f'{tmp_path}/new', '--output', str(text), 'no-such-file')
