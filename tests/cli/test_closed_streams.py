"""Every command with streams that are closed, full or without a reader."""

import json
import os
import subprocess
import sys

import pytest

from craft_jax.main import COMMANDS

# Forks a process for each case: importing once is what takes long. What a
# case prints to an open stream is kept; the last line is the exit codes.
_SCRIPT = """
import json, os, sys, tempfile, traceback
closings, argvs = json.loads(sys.argv[1])
from craft_jax import main
codes = []
for closing in closings:
  for argv in argvs:
    said = tempfile.TemporaryFile()
    child = os.fork()
    if not child:
      try:
        for number in (1, 2):
          os.dup2(said.fileno(), number)
        for number, way in closing:
          stream = ('stdin', 'stdout', 'stderr')[number]
          if way == 'closed':
            os.close(number)
            setattr(sys, stream, None)  # as Python starts with it closed
          elif way == 'full':
            os.dup2(os.open('/dev/full', os.O_WRONLY), number)
          else:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, number)
        sys.argv = ['craft', *argv]
        main.console()
      except SystemExit as e:
        code = e.code
      except BaseException:
        code = 99
        traceback.print_exc(file=open(said.fileno(), 'w', closefd=False))
      os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said.seek(0)
    codes.append([closing, argv, code, said.read().decode()])
print(json.dumps(codes))
"""


def exits(closings, argvs):
  process = subprocess.run(
    [sys.executable, '-c', _SCRIPT, json.dumps([closings, argvs])],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  return json.loads(process.stdout)


_CLOSINGS = [
  *([[n, 'closed']] for n in range(3)),
  [[1, 'closed'], [2, 'closed']],
  [[0, 'closed'], [1, 'closed'], [2, 'closed']],
  [[2, 'full']],
  [[2, 'unread']],
  [[1, 'unread']],
]


@pytest.mark.parametrize('closing', _CLOSINGS, ids=str)
def test_exit_codes_of_every_command(closing):
  helps = [['help'], ['--version'], *([name, '--help'] for name in COMMANDS)]
  wrong = [['nope'], *([name, '--nope=1'] for name in COMMANDS)]
  for _, argv, code, said in exits([closing], helps + wrong):
    assert code == (0 if argv in helps else 2), (argv, said)
    assert 'Traceback' not in said, (argv, said)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux has it')
def test_results_that_do_not_fit_are_a_failure():
  for argv in (['help'], ['eval', '--help'], ['config', 'docs']):
    ((_, _, code, said),) = exits([[[1, 'full']]], [argv])
    assert code == 1 and 'no space left' in said


def test_no_file_becomes_a_standard_stream(tmp_path):
  """What is printed must not land in the first file that is opened."""
  script = (
    'import sys; from craft_jax import main; main._open_streams(); '
    'f = open(sys.argv[1], "w"); print("x"); print("y", file=sys.stderr); '
    'f.write("own"); assert f.fileno() > 2; import subprocess; '
    'subprocess.run([sys.executable, "-c", "print(1)"], check=True)'
  )
  path = tmp_path / 'file'
  command = '"$0" -c "$1" "$2" <&- >&- 2>&-'
  subprocess.run(
    ['bash', '-c', command, sys.executable, script, path], check=True
  )
  assert path.read_text() == 'own'
