"""`launch/sweep.sbatch` and `sweep_pods.sh`: a run per element or pod."""

import pathlib
import re
import sys

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
_SWEEP = ['base', '--set', 'model.width=64,128', '--seeds=2', '--workdir=a b']
_JOB = {
  'SLURM_ARRAY_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': '2', 'SLURM_JOB_ID': '9',
  'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT),
}  # fmt: skip
_REQUEUE = [['scontrol', 'requeue', '7_2']]


def _slurm(fakes, code: int, state: str = 'RUNNING', **rule: str) -> None:
  fakes.add('srun', {'match': '', 'code': code} | rule)
  fakes.add('squeue', {'match': '--jobs=7_2', 'out': f'{state}\n'})
  fakes.add('scontrol')


def test_dry_run_lists_the_runs(fakes):
  _slurm(fakes, 0)
  done = fakes.run('sweep.sbatch', '--dry-run', *_SWEEP, **_JOB)
  assert done.returncode == 0 and not fakes.calls(), done.stderr
  *commands, last = done.stdout.splitlines()
  assert last == '== sbatch --array=0-3' and len(commands) == 4
  assert commands[2].startswith('craft train --config=base ')
  assert commands[2].endswith("'--workdir=a b/width=128,seed=0'")


def test_what_an_element_runs(fakes):
  _slurm(fakes, 0)
  done = fakes.run('sweep.sbatch', *_SWEEP, **_JOB, SLURM_CPUS_PER_TASK='4')
  assert done.returncode == 0, done.stderr
  assert fakes.calls('srun') == [
    [
      *('srun', '--kill-on-bad-exit=0', sys.executable, '-m'),
      *('craft_jax.main', 'sweep', *_SWEEP, '--index=2'),
    ]
  ]
  assert 'start 0 of 7_2 on this node: a b/width=128,seed=0' in done.stdout
  assert not fakes.calls('scontrol')


@pytest.mark.parametrize('code', [69, 75, 137])
def test_lost_and_interrupted_are_requeued(fakes, code):
  """The element alone: its own number may be that of the array."""
  _slurm(fakes, code)
  done = fakes.run('sweep.sbatch', '--', *_SWEEP, **_JOB)
  assert done.returncode == code
  assert fakes.calls('scontrol') == _REQUEUE


@pytest.mark.parametrize('code', [1, 2])
def test_failures_end_the_element(fakes, code):
  _slurm(fakes, code)
  done = fakes.run('sweep.sbatch', *_SWEEP, **_JOB)
  assert done.returncode == code
  assert not fakes.calls('scontrol') and not list(fakes.folder.glob('craft-7*'))


def test_a_cancelled_element_stays_cancelled(fakes):
  _slurm(fakes, 75, 'CANCELLED')
  done = fakes.run('sweep.sbatch', *_SWEEP, **_JOB)
  assert done.returncode == 75 and 'no requeue' in done.stdout
  assert not fakes.calls('scontrol')


def test_a_mistake_in_the_flags_starts_nothing(fakes):
  _slurm(fakes, 0)
  words = ['base', '--set', 'model.widht=1']
  done = fakes.run('sweep.sbatch', *words, **_JOB)
  assert done.returncode == 2 and "did you mean 'model.width'" in done.stderr
  done = fakes.run('sweep.sbatch', *_SWEEP, **(_JOB | {
    'SLURM_ARRAY_TASK_ID': '4'
  }))  # fmt: skip
  assert done.returncode == 2 and 'from 0 to 3' in done.stderr
  done = fakes.run('sweep.sbatch', *_SWEEP, PYTHON=sys.executable)
  assert done.returncode == 2 and 'not in a job array' in done.stderr
  assert not fakes.calls()


@pytest.mark.slow
def test_restarts_without_progress_are_counted(fakes):
  """Progress is a newer checkpoint of this run; starts 0 and 2 make some."""
  path = 'a b/width=128,seed=0/checkpoints'
  (fakes.folder / path).mkdir(parents=True)
  for number in range(9):
    gain = {'touch': f'{path}/{number + 1}0'} if number in (0, 2) else {}
    _slurm(fakes, 69, **gain)
    count = {'SLURM_RESTART_COUNT': str(number)}
    done = fakes.run('sweep.sbatch', *_SWEEP, **_JOB, **count)
    assert done.returncode == 69
    if len(fakes.calls('scontrol')) == number:
      break
  assert number == 6 and 'giving up' in done.stdout


def test_directives():
  """The signal goes to the run (no B:); one process per element."""
  text = (ROOT / 'launch' / 'sweep.sbatch').read_text()
  directives = re.findall(r'^#SBATCH (.*)$', text.partition('\nset ')[0], re.M)
  assert len(directives) == text.count('#SBATCH --')
  assert {
    '--nodes=1', '--ntasks-per-node=1', '--requeue', '--open-mode=append',
    '--signal=USR1@120', '--output=craft-%A_%a.log',
  } <= {*directives}  # fmt: skip


# --- Kubernetes --------------------------------------------------------------

_WORDS = ['--image=reg.io/a/craft:cuda12', '--runs=6', '--gpus=2', '--claim=c']


def _render(fakes, *words: str) -> dict:
  done = fakes.run('sweep_pods.sh', *_WORDS, '--dry-run', *words)
  assert done.returncode == 0, done.stderr
  return yaml.safe_load(done.stdout)


@pytest.mark.parametrize('gpus', ['0', '2'])
@pytest.mark.parametrize(
  'version', ['1.29', kubernetes_validate.latest_version()]
)
def test_job_is_valid(fakes, version, gpus):
  fakes.add('kubectl')
  job = _render(fakes, f'--gpus={gpus}')
  assert not fakes.calls()
  kubernetes_validate.validate(job, version, strict=True)
  job['spec']['backoffLimitPerIndx'] = 1
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, version, strict=True)


def test_a_pod_per_run(fakes):
  job = _render(fakes, '--at-a-time=3', '--name=s', '--', 'base', '--seeds=$6')
  spec = job['spec']
  assert spec['completionMode'] == 'Indexed'
  assert (spec['completions'], spec['parallelism']) == (6, 3)
  assert _render(fakes)['spec']['parallelism'] == 6
  (container,) = spec['template']['spec']['containers']
  # Kubernetes turns $$ into $.
  assert container['args'] == [
    'sweep', '--index=$(RUN)', 'base', '--seeds=$$6', '--workdir=/work/s',
  ]  # fmt: skip
  env = {e['name']: e for e in container['env']}
  field = env['RUN']['valueFrom']['fieldRef']['fieldPath']
  assert 'batch.kubernetes.io/job-completion-index' in field
  assert container['resources']['limits'] == {'nvidia.com/gpu': 2}


def test_a_job_has_at_most_100000_pods(fakes):
  fakes.add('kubectl')
  assert _render(fakes, '--runs=100000')['spec']['completions'] == 100_000
  done = fakes.run('sweep_pods.sh', *_WORDS, '--runs=100001', '--dry-run')
  assert done.returncode == 2 and 'at most 100000' in done.stderr
  assert done.stderr.count('\n') == 1 and not fakes.calls()


def test_what_fails_and_what_restarts(fakes):
  """1 and 2 fail a run and no other; a lost node counts for nothing."""
  spec = _render(fakes, '--restarts=5')['spec']
  assert spec['backoffLimitPerIndex'] == 5 and 'maxFailedIndexes' not in spec
  lost, failed = spec['podFailurePolicy']['rules']
  assert lost['action'] == 'Ignore'
  assert lost['onPodConditions'][0]['type'] == 'DisruptionTarget'
  assert failed['action'] == 'FailIndex'
  assert failed['onExitCodes']['values'] == [1, 2]
  pod = spec['template']['spec']
  assert failed['onExitCodes']['containerName'] == pod['containers'][0]['name']
  assert pod['restartPolicy'] == 'Never'  # which podFailurePolicy needs
  assert pod['terminationGracePeriodSeconds'] >= 120


def test_apply_and_delete(fakes):
  fakes.add('kubectl', stdin=True)
  words = ['--namespace=team', '--', 'base', '--seeds=6']
  done = fakes.run('sweep_pods.sh', *_WORDS, *words)
  assert done.returncode == 0, done.stderr
  assert fakes.calls() == [['kubectl', 'apply', '--namespace=team', '-f', '-']]
  applied = yaml.safe_load(fakes.stdin_of('kubectl'))
  assert applied == _render(fakes, *words[1:])
  assert 'kubectl logs' in done.stdout and '--namespace=team' in done.stdout
  done = fakes.run('sweep_pods.sh', '--name=s', '--delete')
  assert fakes.calls()[1] == ['kubectl', 'delete', 'job', 's']
