"""`launch/tpu_pod.sh` against a stand-in for gcloud, and the hosts' script."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_SLICE = ['--name=pod', '--zone=us-z']
_WORDS = ['--', '--config=toy', '--workdir=gs://b/run']
_ENDED = '== host h{} ended with {}\n'


def _gcloud(fakes, state: str, *rules: dict) -> None:
  """A slice in that state ('' is none); rules come before the usual ones."""
  missing = 'ERROR: NOT_FOUND: Resource pod was not found'
  there = {'match': 'describe', 'out': f'{state}\n'}
  absent = {'match': 'describe', 'err': missing, 'code': 1}
  run = {'match': 'tpu_worker.sh run', 'out': _ENDED.format(0, 0)}
  fakes.add('gcloud', *rules, there if state else absent, run)
  fakes.add('git')


def _verbs(fakes) -> list[str]:
  return [call[4] for call in fakes.calls('gcloud')]


def test_dry_run_calls_nothing(fakes):
  _gcloud(fakes, '')
  words = [*_SLICE, '--type=v5litepod-16', '--spot', '--dry-run', *_WORDS]
  done = fakes.run('tpu_pod.sh', *words)
  assert done.returncode == 0 and not fakes.calls()
  lines = [li for li in done.stdout.splitlines() if li.startswith('gcloud')]
  assert [line.split()[4] for line in lines] == [
    *('describe', 'create', 'scp', 'ssh', 'ssh')
  ]
  assert '--accelerator-type=v5litepod-16' in lines[1]
  assert '--version=v2-alpha-tpuv5-lite --spot' in lines[1]
  assert 'train --distributed --config=toy' in lines[4]


def test_a_slice_is_made(fakes):
  _gcloud(fakes, '')
  done = fakes.run(
    'tpu_pod.sh', *_SLICE, '--type=v4-16', '--project=p', *_WORDS
  )
  assert done.returncode == 0, done.stderr
  assert _verbs(fakes) == ['describe', 'create', 'scp', 'ssh', 'ssh']
  calls = fakes.calls('gcloud')
  assert all({'--zone=us-z', '--project=p'} <= {*call} for call in calls)
  assert calls[1][5:] == [
    *('pod', '--zone=us-z', '--project=p', '--accelerator-type=v4-16'),
    '--version=tpu-ubuntu2204-base',
  ]
  assert all('--worker=all' in call for call in calls[2:])
  assert 'tpu_worker.sh install' in calls[3][-1]
  words = 'train --distributed --config=toy --workdir=gs://b/run'
  assert calls[4][-1].endswith(words)
  assert ['git', '-C', str(_ROOT), 'archive'] == fakes.calls('git')[1][:4]


def test_a_slice_is_used_again(fakes):
  _gcloud(fakes, 'READY')
  assert fakes.run('tpu_pod.sh', *_SLICE, *_WORDS).returncode == 0
  assert _verbs(fakes) == ['describe', 'scp', 'ssh', 'ssh']


def test_a_slice_taken_away_is_made_again(fakes):
  _gcloud(fakes, 'PREEMPTED')
  done = fakes.run('tpu_pod.sh', *_SLICE, '--type=v4-16', *_WORDS)
  assert done.returncode == 0
  assert _verbs(fakes)[:3] == ['describe', 'delete', 'create']


def test_a_slice_in_the_making_is_left_alone(fakes):
  _gcloud(fakes, 'CREATING')
  done = fakes.run('tpu_pod.sh', *_SLICE, '--type=v4-16', *_WORDS)
  assert done.returncode == 69 and 'CREATING' in done.stderr
  assert _verbs(fakes) == ['describe']


def test_no_permission_is_not_no_slice(fakes):
  _gcloud(fakes, '', {'match': 'describe', 'err': 'denied\n', 'code': 1})
  done = fakes.run('tpu_pod.sh', *_SLICE, '--type=v4-16', *_WORDS)
  assert done.returncode == 1 and 'denied' in done.stderr
  assert _verbs(fakes) == ['describe']


def test_delete(fakes):
  _gcloud(fakes, 'READY')
  done = fakes.run('tpu_pod.sh', *_SLICE, '--delete')
  assert done.returncode == 0 and _verbs(fakes) == ['delete']


@pytest.mark.parametrize(
  ('codes', 'gcloud', 'code'),
  [
    ((0, 0), 0, 0),
    ((75, 75), 75, 75),
    ((69, 1), 69, 1),
    ((2, 2), 2, 2),
    ((0,), 255, 69),
    ((), 255, 69),
    ((), 0, 69),
  ],
)
def test_exit_code(fakes, codes, gcloud, code):
  out = ''.join(_ENDED.format(i, c) for i, c in enumerate(codes))
  run = {'match': 'tpu_worker.sh run', 'out': f'a step\n{out}', 'code': gcloud}
  _gcloud(fakes, 'READY', run)
  done = fakes.run('tpu_pod.sh', *_SLICE, *_WORDS)
  assert done.returncode == code
  assert 'a step\n' in done.stdout
  assert ('was lost' in done.stderr) == (code == 69)


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_signals_reach_the_hosts(fakes, name):
  run = {
    'match': 'tpu_worker.sh run',
    'touch': 'started',
    'until': 'stopped',
    'code': 75,
    'out': _ENDED.format(0, 75),
  }
  stop = {'match': 'bash craft/launch/tpu_worker.sh stop', 'touch': 'stopped'}
  install = {'match': 'tpu_worker.sh install'}
  _gcloud(fakes, 'READY', install, run, stop)
  started = fakes.start('tpu_pod.sh', *_SLICE, *_WORDS)
  _wait_for(fakes.folder / 'started')
  assert not (fakes.folder / 'stopped').exists()
  started.send_signal(getattr(signal, name))
  started.communicate(timeout=20)
  assert started.returncode == 75
  assert fakes.calls('gcloud')[-1][-1].endswith('tpu_worker.sh stop')


def _wait_for(path: pathlib.Path) -> None:
  end = time.monotonic() + 20
  while not path.exists():
    assert time.monotonic() < end, f'{path} in vain'
    time.sleep(0.02)


# Plays craft on a host: runs until told to end, or exits with what it is told.
_CRAFT = """#!{python} -IS
import pathlib, signal, sys, time
print('craft', *sys.argv[3:], flush=True)
if '--code' in sys.argv:
  sys.exit(int(sys.argv[-1]))
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
pathlib.Path({folder!r}, 'started').touch()
end = time.monotonic() + 60
while time.monotonic() < end and (not asked or '--deaf' in sys.argv):
  time.sleep(0.02)
print('saved', flush=True)
sys.exit(75)
"""


class Host:
  """A home with the checkout's scripts and a played craft."""

  def __init__(self, home: pathlib.Path):
    self.home = home
    shutil.copytree(_ROOT / 'launch', home / 'craft' / 'launch')
    python = home / 'craft' / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(_CRAFT.format(python=sys.executable, folder=str(home)))
    python.chmod(0o755)
    self.line = ['bash', str(home / 'craft' / 'launch' / 'tpu_worker.sh')]
    self.env = os.environ | {'HOME': str(home), 'CRAFT_GRACE': '1'}

  def run(self, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      [*self.line, *words],
      env=self.env,
      capture_output=True,
      text=True,
      timeout=30,
    )

  def start(self, *words: str) -> subprocess.Popen:
    started = subprocess.Popen(
      [*self.line, *words], env=self.env, stdout=subprocess.PIPE, text=True
    )
    _wait_for(self.home / 'started')
    _wait_for(self.home / 'craft-run' / 'id')
    return started


def _break_off(started: subprocess.Popen) -> None:
  """As a lost connection does; whoever still writes to it is on his own."""
  started.kill()
  started.wait(timeout=20)
  started.stdout.close()


@pytest.fixture
def host(tmp_path):
  host = Host(tmp_path)
  yield host
  host.run('stop')


def test_a_host_runs_and_ends(host):
  done = host.run('run', 'a', 'train', '--x=a b', '--code', '69')
  assert done.returncode == 69
  assert 'craft train --x=a b --code 69\n' in done.stdout
  assert done.stdout.splitlines()[-1].endswith(' ended with 69')
  # gcloud may ask again after the end.
  again = host.run('run', 'a', 'train', '--code', '69')
  assert again.returncode == 69 and again.stdout.count('craft train') == 1


def test_a_host_stops(host):
  assert host.run('stop').returncode == 0
  started = host.start('run', 'a', 'train')
  assert host.run('stop').returncode == 0
  out, _ = started.communicate(timeout=20)
  assert started.returncode == 75 and 'saved\n== host ' in out


def test_a_deaf_run_is_killed(host):
  started = host.start('run', 'a', 'train', '--deaf')
  assert host.run('stop').returncode == 0
  started.communicate(timeout=20)
  assert started.returncode == 137


def test_a_broken_connection_is_taken_up(host):
  started = host.start('run', 'a', 'train')
  _break_off(started)
  again = subprocess.Popen(
    [*host.line, 'run', 'a', 'train'],
    env=host.env,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert 'following' in again.stdout.readline()
  assert again.stdout.readline() == 'craft train\n'
  host.run('stop')
  again.communicate(timeout=20)
  assert again.returncode == 75


def test_another_run_takes_over(host):
  started = host.start('run', 'a', 'train')
  _break_off(started)
  done = host.run('run', 'b', 'train', '--code', '0')
  assert done.returncode == 0
  assert 'the run saves and ends' in done.stdout
