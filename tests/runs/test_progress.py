"""The bar fits its terminal; elsewhere there are plain lines."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from craft_jax.runs import metric_table, progress

FIGURES = {
  'loss': 1.23456,
  'bpc': 1.781,
  'chars_per_second': 123456.7,
  'utilisation': 0.4321,
  'val_loss': 1.5,
  'val_bpb': 2.25,
}


@pytest.fixture
def clock(monkeypatch):
  """A clock that goes on by a second at every step."""
  now = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  return now


def test_plain_lines_once_per_interval(clock):
  stream = io.StringIO()
  with progress.Progress(25, seconds=10, stream=stream) as bar:
    for step in range(1, 26):
      clock[0] = float(step)
      bar.update(step, FIGURES if step == 11 else {'loss': 1.0})
    bar.message('saved [bold]x')
  lines = stream.getvalue().splitlines()
  assert [line.split('  ')[0] for line in lines] == [
    'step 1/25', 'step 11/25', 'step 21/25', 'step 25/25',
    'saved [bold]x',
  ]  # fmt: skip
  assert '43.2% of peak' in lines[1]
  assert '123,457 chars/s' in lines[1] and ' left' in lines[1]
  # The last evaluation stays in view; nothing is left at the end.
  assert 'val 1.5000' in lines[3] and ' left' not in lines[3]


def test_a_resumed_run_and_a_finished_one(clock):
  stream = io.StringIO()
  with progress.Progress(60, step=30, stream=stream) as bar:
    for step in (30, 40, 50, 60, 60):
      bar.update(step, {})
  assert stream.getvalue().count('step 30/60') == 1
  assert stream.getvalue().count('step 60/60') == 1
  assert stream.getvalue().count('step') == 2


def test_quiet_still_warns():
  stream = io.StringIO()
  with progress.Progress(5, quiet=True, stream=stream) as bar:
    bar.update(5, FIGURES)
    bar.phase('evaluating')
    bar.message('saved')
    bar.warn('checkpoint 2 is damaged')
  assert stream.getvalue() == 'warning: checkpoint 2 is damaged\n'


@pytest.mark.parametrize('width', [5, 20, 40, 60, 80, 120, 200])
def test_the_bar_line_fits(width):
  parts = metric_table.bar_parts(FIGURES)
  line = progress.bar_line(450, 1000, '1:02', parts, width, 'evaluating')
  assert len(line) <= width
  assert line.count('loss') == (width >= 60)
  whole = progress.bar_line(1000, 1000, '', [], width, '')
  assert progress._EMPTY not in whole
  empty = progress.bar_line(0, 0, '', [], width, '')
  assert progress._FULL not in empty


def test_clock():
  shown = [progress.clock(s) for s in (-1, 0, 7.4, 59.6, 754, 3723)]
  assert shown == ['0:00', '0:00', '0:07', '1:00', '12:34', '1:02:03']


_SCRIPT = """
import sys, warnings
from craft_jax.runs.progress import Progress
with Progress(3) as bar:
  for step in (1, 2, 3):
    bar.update(step, {'loss': 1.5})
    if step == 2:
      bar.message('a long message ' * 12)
      print('warned', file=sys.stderr)
      print('result')
"""


@pytest.mark.parametrize('width', [60, 120])
def test_a_real_terminal(width):
  """A bar on the terminal, results untouched on the pipe."""
  leader, follower = pty.openpty()
  size = struct.pack('HHHH', 24, width, 0, 0)
  fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
  env = {k: v for k, v in os.environ.items() if k not in ('COLUMNS', 'LINES')}
  done = subprocess.run(
    [sys.executable, '-c', _SCRIPT],
    stdin=follower,
    stdout=subprocess.PIPE,
    stderr=follower,
    env=env | {'TERM': 'xterm', 'PYTHONPATH': os.pathsep.join(sys.path)},
    timeout=60,
    check=False,
  )
  os.close(follower)
  said = b''
  try:
    while block := os.read(leader, 65536):
      said += block
  except OSError:
    pass  # the other end is closed: all was read
  os.close(leader)
  assert done.returncode == 0, said
  assert done.stdout == b'result\n'
  text = said.decode()
  assert progress._FULL in text and 'warned' in text
  assert text.count('a long message') == 12
  assert text.rstrip().endswith('step 3/3  loss 1.5000')
  assert '\x1b[?25h' in text  # the cursor is shown again
