"""`launch/slurm.sbatch` and `sweep.sbatch` on a real SLURM of two nodes.

Both nodes are on this machine: a munged, a slurmctld and two slurmd of our own,
on free ports, with all their files in one folder. Nothing that the machine may
have of SLURM is used or changed.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from craft_jax.runs import checkpoint

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[2]
_PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scancel')
# A run that lasts until it is ended, and saves often.
_ENDLESS = (
  '--config=toy', '--config.train.steps=1000000',
  '--config.checkpoint.every=50', '--config.eval.every=0',
  '--config.log.sample_chars=0',
)  # fmt: skip
_CONF = """
ClusterName=craft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
FirstJobId={job}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(condition, seconds: float = 120, what=lambda: '') -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, f'in vain: {what()}'
    time.sleep(0.2)


class Cluster:
  """A SLURM of two nodes; a job's files are in `folder`."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.host = folder, socket.gethostname()
    self.nodes = [self.host, f'{self.host}-2']
    self.env = {
      k: v for k, v in os.environ.items() if not k.startswith('SLURM_')
    } | {
      'SLURM_CONF': str(folder / 'slurm.conf'), 'PYTHON': sys.executable,
      'PYTHONPATH': str(_ROOT), 'JAX_PLATFORMS': 'cpu',
    }  # fmt: skip
    self._daemons: list[subprocess.Popen] = []

  def start(self) -> None:
    (self.folder / 'state').mkdir()
    key = self.folder / 'munge.key'
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    sockets = [socket.socket() for _ in range(3)]
    for s in sockets:
      s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
      s.close()
    # JAX derives the port of process 0 from the number of the job.
    job = 1 + int.from_bytes(os.urandom(2), 'big') * 64
    text = _CONF.format(
      folder=self.folder, host=self.host, ports=ports, job=job
    )
    (self.folder / 'slurm.conf').write_text(text)
    files = {
      name: f'--{name}={self.folder}/munge.{end}'
      for name, end in (
        ('key-file', 'key'), ('socket', 'socket'), ('pid-file', 'pid'),
        ('log-file', 'log'), ('seed-file', 'seed'),
      )
    }  # fmt: skip
    self._daemon('munged', '--foreground', '--force', *files.values())
    wait_until((self.folder / 'munge.socket').exists, 20)
    self._daemon('slurmctld', '-D')
    for node in self.nodes:
      self._daemon('slurmd', '-D', '-N', node)
    wait_until(
      lambda: self.tell('sinfo', '-hN', '-o%T').split() == ['idle'] * 2,
      60,
      self.logs,
    )

  def _daemon(self, *words: str) -> None:
    with (self.folder / f'{words[0]}.log').open('ab') as log:
      self._daemons.append(
        subprocess.Popen(
          words, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
      )

  def stop(self) -> None:
    self.tell('scancel', '--signal=KILL', '--full', '--user=root')
    self.tell('scancel', '--user=root')
    end = time.monotonic() + 60
    while self.tell('squeue', '-h') and time.monotonic() < end:
      time.sleep(0.2)
    for daemon in self._daemons[::-1]:
      daemon.terminate()
      daemon.wait(20)

  def logs(self) -> str:
    """The ends of all logs."""
    return '\n'.join(
      f'{path.name}: {path.read_text(errors="replace")[-2000:]}'
      for path in sorted(self.folder.glob('*.log'))
    )

  def tell(self, *words: str) -> str:
    """Runs a command of SLURM; what it prints, whatever it exits with."""
    return subprocess.run(
      words, env=self.env, capture_output=True, text=True, timeout=60,
      cwd=self.folder,
    ).stdout.strip()  # fmt: skip

  def submit(self, *words: str) -> str:
    """The number of a new job: options of sbatch, the script and its own."""
    done = subprocess.run(
      ['sbatch', '--parsable', *words],
      env=self.env, capture_output=True, text=True, cwd=self.folder, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

  def train(self, workdir: str, *words: str, options: tuple = ()) -> str:
    """A training job of one task on each node."""
    return self.submit(
      *('--ntasks-per-node=1', '--gpus-per-node=0', '--cpus-per-task=1'),
      *(*options, str(_ROOT / 'launch' / 'slurm.sbatch')),
      *(*words, f'--workdir={workdir}'),
    )

  def field(self, job: str, name: str) -> str:
    """One field of `scontrol show job`; '' once SLURM has forgotten it."""
    for word in self.tell('scontrol', 'show', 'job', job).split():
      key, _, value = word.partition('=')
      if key == name:
        return value
    return ''

  def log(self, job: str) -> str:
    path = self.folder / f'craft-{job}.log'
    return path.read_text(errors='replace') if path.exists() else ''

  def wait(self, job: str, state: str, seconds: float = 180) -> None:
    """Until the job is in that state."""
    wait_until(
      lambda: self.field(job, 'JobState') == state,
      seconds,
      lambda: self.field(job, 'JobState') + self.log(job) + self.logs(),
    )

  def wait_for_progress(self, job: str, workdir: str, restarts: int) -> None:
    """Until this start of the job has saved a step of its own."""
    started = f'start {restarts} of job {job}'
    wait_until(
      lambda: started in self.log(job), 120, lambda: self.log(job)[-3000:]
    )
    before = checkpoint.steps(self.folder / workdir)[-1:]
    wait_until(
      lambda: checkpoint.steps(self.folder / workdir)[-1:] > before,
      120,
      lambda: self.log(job)[-3000:],
    )

  def tasks(self, workdir: str) -> list[int]:
    """The processes that train there, by process id."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
      try:
        words = path.read_bytes().split(b'\0')
      except OSError:  # it has ended
        continue
      if words[0] == sys.executable.encode() and (
        f'--workdir={workdir}'.encode() in words
      ):
        found.append(int(path.parent.name))
    return sorted(found)


@pytest.fixture(scope='module')
def cluster():
  missing = [name for name in _PROGRAMS if not shutil.which(name)]
  if missing:
    pytest.skip(f'needs {", ".join(missing)}: Debian has slurm-wlm and munge')
  if os.getuid():
    pytest.skip('SLURM starts jobs as root only')
  try:
    socket.gethostbyname(socket.gethostname())
  except OSError:
    pytest.skip('the name of this machine has no address')
  # The path of a socket has at most 107 bytes, which tmp_path may exceed.
  folder = pathlib.Path(tempfile.mkdtemp(prefix='craft-slurm-'))
  found = Cluster(folder)
  try:
    found.start()
    yield found
  finally:
    found.stop()
    shutil.rmtree(folder)


def test_two_nodes_train_to_the_end(cluster):
  """More calls than a pace that is not agreed on survives."""
  words = ('--config=toy', '--config.train.steps=1500')
  job = cluster.train('whole', *words)
  cluster.wait(job, 'COMPLETED', 240)
  assert 'step 1500 of 1500 is saved' in cluster.log(job)
  metadata = json.loads((cluster.folder / 'whole/metadata.json').read_text())
  assert metadata['num_processes'] == 2 and metadata['status'] == 'finished'
  assert checkpoint.find_damage(cluster.folder / 'whole', 1500) == ''


def test_lost_tasks_lost_nodes_and_scancel(cluster):
  """What is lost is requeued and goes on; what is cancelled saves and ends."""
  job = cluster.train('lost', *_ENDLESS)
  cluster.wait_for_progress(job, 'lost', 0)
  os.kill(cluster.tasks('lost')[1], signal.SIGKILL)
  cluster.wait_for_progress(job, 'lost', 1)
  assert cluster.log(job).count(': requeue') == 1

  node = f'NodeName={cluster.nodes[1]}'
  cluster.tell('scontrol', 'update', node, 'State=DOWN', 'Reason=test')
  wait_until(lambda: cluster.field(job, 'Restarts') == '2', 60)
  cluster.tell('scontrol', 'update', node, 'State=RESUME')
  cluster.wait_for_progress(job, 'lost', 2)

  cluster.tell('scancel', job)
  cluster.wait(job, 'CANCELLED')
  wait_until(lambda: not cluster.tasks('lost'), 60)
  wait_until(
    lambda: 'no requeue' in cluster.log(job), 30, lambda: cluster.log(job)
  )
  step = checkpoint.steps(cluster.folder / 'lost')[-1]
  assert f'step {step} is saved' in cluster.log(job)
  assert cluster.field(job, 'Restarts') == '2'


def test_before_the_time_limit_it_saves_and_is_requeued(cluster):
  """SLURM sends USR1 to the tasks up to a minute before it is due."""
  options = ('--time=2', '--signal=USR1@60')
  job = cluster.train('limited', *_ENDLESS, options=options)
  wait_until(
    lambda: 'exit code 75: requeue' in cluster.log(job),
    150,
    lambda: cluster.log(job)[-3000:] + cluster.logs(),
  )
  saved = checkpoint.steps(cluster.folder / 'limited')[-1]
  assert f'step {saved} is saved' in cluster.log(job)
  cluster.wait_for_progress(job, 'limited', 1)
  assert checkpoint.steps(cluster.folder / 'limited')[-1] > saved
  cluster.tell('scancel', job)
  cluster.wait(job, 'CANCELLED')


def test_an_array_is_a_sweep(cluster):
  sweep = ('toy', '--set', 'model.width=16,32', '--workdir=sweep')
  job = cluster.submit(
    *('--array=0-1', '--gpus-per-node=0', '--cpus-per-task=1'),
    *(str(_ROOT / 'launch' / 'sweep.sbatch'), *sweep),
    '--config.train.steps=20',
  )
  wait_until(
    lambda: not cluster.tell('squeue', '-h', '-j', job), 180, cluster.logs
  )
  done = [
    json.loads(path.read_text())['status']
    for path in sorted((cluster.folder / 'sweep').glob('*/metadata.json'))
  ]
  assert done == ['finished'] * 2, cluster.logs()
