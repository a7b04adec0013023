"""What a terminal is not to obey: escaped there, raw in a pipe."""

import io
import os
import pty
import subprocess
import sys

import pytest

from craft_jax.data.text import utf8
from craft_jax.runtime import terminal


def test_what_would_be_obeyed():
  assert terminal.visible('a\tb\n\x1b[2Jc\r') == 'a\tb\n\\x1b[2Jc\\r'
  assert terminal.visible('\x9b\x7f\u202e\u2066\ufffd') == (
    '\\u009b\\x7f\\u202e\\u2066\\ufffd'
  )
  assert terminal.visible('\udc9b') == '\\x9b'  # a byte that is no UTF-8
  assert terminal.visible('grün 漢字 \U0001f600') == 'grün 漢字 \U0001f600'


def test_html_shows_it_too():
  assert terminal.as_html('<\x1b>') == '&lt;\\x1b&gt;'


def test_a_stream_is_escaped_and_a_drawing_is_not():
  below = io.StringIO()
  stream = terminal.Visible(below)
  print('\x1b[31m', file=stream)
  print('\x1b[0m', file=terminal.drawing(stream))
  assert below.getvalue() == '\\x1b[31m\n\x1b[0m\n'


def on_terminal(command: list[str], folder: os.PathLike[str]) -> str:
  """What the command shows on a terminal."""
  leader, follower = pty.openpty()
  process = subprocess.Popen(
    command, stdin=follower, stdout=follower, stderr=follower, cwd=folder
  )
  os.close(follower)
  shown = b''
  try:
    while piece := os.read(leader, 1 << 16):
      shown += piece
  except OSError:  # Linux: the other side has gone
    pass
  finally:
    os.close(leader)
    process.wait()
  return shown.decode('utf-8', 'replace').replace('\r\n', '\n')


@pytest.mark.parametrize(
  'words',
  [
    ['inspect', '--workdir=x\x1b]0;y\x07'],  # an error
    ['sample', '--workdir=x', '--\x9b2J'],  # of the parser
    ['data', 'stats', '--config.data.path=bad.txt'],
  ],
)
def test_commands_escape_on_a_terminal(tmp_path, words):
  (tmp_path / 'bad.txt').write_text('a\x1b[2J\x9b\u202e\r' * 200)
  command = [sys.executable, '-m', 'craft_jax.main', *words]
  shown = on_terminal(command, tmp_path)
  assert shown.strip()
  assert not set('\x1b\x07\x9b\u202e\r') & set(shown)
  piped = subprocess.run(command, cwd=tmp_path, capture_output=True)
  assert piped.stdout or piped.stderr


def test_samples_escape_on_a_terminal_only(tmp_path, byte_run):
  # An untrained model over bytes writes every byte.
  command = [
    *(sys.executable, '-m', 'craft_jax.main', 'sample'),
    *(f'--workdir={byte_run}', '--prompt=\x1b', '--max-chars=200', '--quiet'),
  ]
  shown = on_terminal(command, tmp_path)
  controls = {chr(code) for code in (*range(9), *range(14, 32), 127, 0xFFFD)}
  assert '\\x1b' in shown
  assert not controls & set(shown)
  piped = subprocess.run(command, cwd=tmp_path, capture_output=True)
  assert b'\x1b' in piped.stdout
  assert utf8.to_bytes('\udcff')[0] == 0xFF
