"""`launch/local.sh`: processes, signals, exit codes, and nothing left over."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

# As $PYTHON: code given with -c is really run; craft is played. Each process
# follows its plan: for how long it runs, what it exits with, whether it hears
# signals and whether it has a child.
_PYTHON = """#!{python} -IS
import json, os, pathlib, signal, subprocess, sys, time
if sys.argv[1] == '-c':
  os.execv({python!r}, [{python!r}, *sys.argv[1:]])
here = pathlib.Path({folder!r})
flags = dict(w[2:].split('=', 1) for w in sys.argv[4:] if w.startswith('--'))
number = flags['process-id']
plan = json.loads((here / 'plan').read_text()).get(number, {{}})
note = dict(words=sys.argv[1:], heard=[], pids=[os.getpid()])
note['env'] = {{k: v for k, v in os.environ.items() if k.startswith('JAX_')}}
asked = []
def hear(number, frame):
  asked.append(number)
for name in ('INT', 'TERM', 'USR1', 'HUP'):
  signal.signal(getattr(signal, 'SIG' + name), hear)
if plan.get('child'):
  sleeper = subprocess.Popen(['sleep', '60'])
  note['pids'].append(sleeper.pid)
def write():
  note['heard'] = [signal.Signals(n).name for n in asked]
  (here / (number + '.new')).write_text(json.dumps(note))
  (here / (number + '.new')).rename(here / (number + '.json'))
write()
print('out of', number)
print('err of', number, file=sys.stderr, flush=True)
end = time.monotonic() + plan.get('seconds', 0)
while time.monotonic() < end and (plan.get('deaf') or not asked):
  time.sleep(0.02)
write()
sys.exit(75 if asked and not plan.get('deaf') else plan.get('code', 0))
"""
_LONG = {'seconds': 60}


class Played:
  """local.sh with played processes."""

  def __init__(self, fakes):
    self.fakes = fakes
    path = fakes.bin / 'fake-python'
    path.write_text(
      _PYTHON.format(python=sys.executable, folder=str(fakes.folder))
    )
    path.chmod(0o755)
    self.env = {'PYTHON': str(path)}
    self.plan()

  def plan(self, **plans: dict) -> None:
    """What process `p0`, `p1`, ... does; others end at once with 0."""
    text = json.dumps({name[1:]: plan for name, plan in plans.items()})
    (self.fakes.folder / 'plan').write_text(text)

  def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return self.fakes.run('local.sh', *words, **self.env, **env)

  def start(self, *words: str, processes: int) -> subprocess.Popen:
    """Returns once all processes hear signals."""
    words = (f'--processes={processes}', *words)
    started = self.fakes.start('local.sh', *words, **self.env)
    wait_until(lambda: all(self.path(i).exists() for i in range(processes)), 20)
    return started

  def path(self, number: int) -> pathlib.Path:
    return self.fakes.folder / f'{number}.json'

  def note(self, number: int) -> dict:
    return json.loads(self.path(number).read_text())

  def alive(self) -> list[int]:
    """Processes, and children of theirs, that are still there."""
    notes = self.fakes.folder.glob('?.json')
    pids = [p for n in notes for p in json.loads(n.read_text())['pids']]
    return [pid for pid in pids if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  stat = pathlib.Path(f'/proc/{pid}/stat')
  # Z: dead, but not yet collected by whoever adopted it.
  return not stat.exists() or ') Z ' not in stat.read_text()


def wait_until(condition, seconds: float) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'in vain'
    time.sleep(0.02)


@pytest.fixture
def played(fakes):
  return Played(fakes)


def test_dry_run_starts_nothing(played):
  done = played.run('--processes=2', '--dry-run', '--config=toy', PATH='/bin')
  lines = done.stdout.splitlines()
  assert done.returncode == 0 and len(lines) == 2
  assert all('train --coordinator=127.0.0.1:PORT ' in line for line in lines)
  assert not played.path(0).exists()


def test_processes_join_and_finish(played):
  done = played.run(
    '--processes', '3', '--cpu-devices', '2', '--', '--config=toy', '--x=a b'
  )
  assert done.returncode == 0, done.stderr
  notes = [played.note(i) for i in range(3)]
  where = notes[0]['words'][3]
  address, port = where.removeprefix('--coordinator=').split(':')
  assert address == '127.0.0.1' and 1024 <= int(port) <= 65535
  for i, note in enumerate(notes):
    assert note['words'] == [
      *('-m', 'craft_jax.main', 'train', where, '--num-processes=3'),
      *(f'--process-id={i}', '--config=toy', '--x=a b'),
      '--config.mesh.cpu_devices=2',
    ]
    assert note['env']['JAX_COORDINATOR_BIND_ADDRESS'] == f'{address}:{port}'
    assert note['env']['JAX_PLATFORMS'] == 'cpu'
  assert not played.alive()


def test_first_word_is_the_command(played):
  words = ('--processes=1', '--port=1234', 'eval', '--workdir=w')
  done = played.run(*words, JAX_PLATFORMS='cuda')
  assert done.returncode == 0
  note = played.note(0)
  assert note['words'][2:4] == ['eval', '--coordinator=127.0.0.1:1234']
  assert note['words'][-1] == '--workdir=w'
  assert note['env']['JAX_PLATFORMS'] == 'cuda'


def test_who_writes_where(played):
  done = played.run('--processes=2')
  assert done.stdout == 'out of 0\n'
  assert sorted(done.stderr.splitlines()) == [
    *('[1] err of 1', '[1] out of 1', 'err of 0')
  ]


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGHUP'])
def test_signals_reach_all(played, name):
  played.plan(p0=_LONG, p1=_LONG)
  started = played.start(processes=2)
  started.send_signal(getattr(signal, name))
  started.communicate(timeout=20)
  assert started.returncode == 75
  assert [played.note(i)['heard'] for i in (0, 1)] == [[name], [name]]
  assert not played.alive()


@pytest.mark.parametrize(
  ('codes', 'code'), [((69, 1), 1), ((2, 69), 2), ((75, 69), 69)]
)
def test_exit_code(played, codes, code):
  played.plan(p0={'code': codes[0]}, p1={'code': codes[1]})
  done = played.run('--processes=2')
  assert done.returncode == code
  assert not played.alive()


def test_the_others_end_after_the_grace(played):
  """The one that hears is asked to save, the deaf one is killed."""
  played.plan(
    p0=_LONG, p1={'code': 1}, p2=_LONG | {'deaf': True, 'child': True}
  )
  done = played.run('--processes=3', '--grace=1')
  assert done.returncode == 1
  assert 'process 1 ended with 1' in done.stderr
  assert 'process 2 ended with 137' in done.stderr
  assert played.note(0)['heard'] == ['SIGTERM']
  assert not played.alive()


def test_a_killed_process_is_lost(played):
  played.plan(p0={'seconds': 0.5, 'code': 69}, p1=_LONG | {'child': True})
  started = played.start(processes=2)
  os.kill(played.note(1)['pids'][0], signal.SIGKILL)
  _, err = started.communicate(timeout=20)
  assert started.returncode == 69
  assert 'process 1 ended with 137' in err and 'Killed' not in err
  assert not played.alive()


def test_quit_ends_all_at_once(played):
  played.plan(p0=_LONG | {'deaf': True, 'child': True}, p1=_LONG)
  started = played.start(processes=2)
  started.send_signal(signal.SIGQUIT)
  started.communicate(timeout=20)
  assert started.returncode == 69
  assert not played.alive()


def test_nothing_outlives_a_killed_script(played, tmp_path):
  played.fakes.env |= {'TMPDIR': str(tmp_path)}
  played.plan(p0=_LONG | {'child': True}, p1=_LONG | {'deaf': True})
  started = played.start('--grace=1', processes=2)
  started.kill()
  started.communicate(timeout=20)
  wait_until(lambda: not played.alive(), 20)
  wait_until(lambda: not list(tmp_path.glob('craft-local.*')), 20)
  assert played.note(0)['heard'] == ['SIGTERM']


def test_wrong_python_is_named(played):
  done = played.fakes.run('local.sh', '--processes=2', PYTHON='/no/python')
  assert done.returncode == 2 and '/no/python' in done.stderr
