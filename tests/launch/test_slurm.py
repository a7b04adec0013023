"""`launch/slurm.sbatch` against stand-ins for SLURM."""

import pathlib
import re
import shutil
import sys

import pytest

_SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'slurm.sbatch'
_JOB = {'SLURM_JOB_ID': '7', 'PYTHON': sys.executable}
_WORDS = ['--config=toy', '--workdir=run']
_REQUEUE = [['scontrol', 'requeue', '7']]


def _slurm(fakes, code: int, state: str = 'RUNNING') -> None:
  fakes.add('srun', {'match': '', 'code': code})
  fakes.add('squeue', {'match': '--jobs=7', 'out': f'{state}\n'})
  fakes.add('scontrol')


def test_dry_run_calls_nothing(fakes):
  _slurm(fakes, 0)
  done = fakes.run('slurm.sbatch', '--dry-run', '--', *_WORDS, **_JOB)
  assert done.returncode == 0 and not fakes.calls()
  first, second = done.stdout.splitlines()
  assert first.startswith('srun ')
  assert first.split()[-4:] == ['train', '--distributed', *_WORDS]
  assert 'scontrol requeue 7' in second


def test_what_srun_runs(fakes):
  _slurm(fakes, 0)
  words = ['eval', '--workdir', 'a b']
  done = fakes.run('slurm.sbatch', *words, **_JOB, SLURM_CPUS_PER_TASK='4')
  assert done.returncode == 0, done.stderr
  assert fakes.calls('srun') == [
    [
      *('srun', '--label', '--kill-on-bad-exit=0', '--wait=300'),
      *(sys.executable, '-m', 'craft_jax.main', 'eval', '--distributed'),
      *('--workdir', 'a b'),
    ]
  ]


@pytest.mark.parametrize('code', [69, 75, 134, 137])
def test_lost_and_interrupted_are_requeued(fakes, code):
  _slurm(fakes, code)
  done = fakes.run('slurm.sbatch', '--', *_WORDS, **_JOB)
  assert done.returncode == code
  assert fakes.calls('scontrol') == _REQUEUE


@pytest.mark.parametrize('code', [0, 1, 2, 127])
def test_other_codes_end_the_job(fakes, code):
  _slurm(fakes, code)
  done = fakes.run('slurm.sbatch', *_WORDS, **_JOB)
  assert done.returncode == code
  assert not fakes.calls('scontrol')
  assert not list(fakes.folder.glob('craft-7*'))


@pytest.mark.parametrize('state', ['COMPLETING', 'CANCELLED', ''])
def test_a_cancelled_job_stays_cancelled(fakes, state):
  _slurm(fakes, 75, state)
  done = fakes.run('slurm.sbatch', *_WORDS, **_JOB)
  assert done.returncode == 75 and 'no requeue' in done.stdout
  assert not fakes.calls('scontrol')


def _starts(fakes, code: int, gains: str, *words: str) -> int:
  """Starts the job until it is not requeued; returns how often it was.

  Start I writes a checkpoint where character I of `gains` is a +.
  """
  (fakes.folder / 'run' / 'checkpoints').mkdir(parents=True)
  for number in range(8):
    rule = {'match': '', 'code': code}
    if gains[number : number + 1] == '+':
      rule['touch'] = f'run/checkpoints/{number + 1}0'
    _slurm(fakes, code)
    fakes.add('srun', rule)
    count = {'SLURM_RESTART_COUNT': str(number)}
    done = fakes.run('slurm.sbatch', *words, *_WORDS, **_JOB, **count)
    assert done.returncode == code
    if len(fakes.calls('scontrol')) == number:
      assert 'giving up' in done.stdout
      return number
  return 8


def test_restarts_without_progress_are_counted(fakes):
  assert _starts(fakes, 69, '') == 3


def test_the_limit_can_be_set(fakes):
  assert _starts(fakes, 69, '', '--restarts=1') == 1


def test_a_new_checkpoint_is_progress(fakes):
  """Starts 0, 1 and 3 gain something; three more are granted after that."""
  assert _starts(fakes, 69, '++-+') == 7


def test_saving_is_progress(fakes):
  assert _starts(fakes, 75, '') == 8


def test_runs_from_a_copy_elsewhere(fakes):
  """As SLURM does."""
  copy = fakes.folder / 'slurm_script'
  shutil.copy(_SCRIPT, copy)
  _slurm(fakes, 75)
  done = fakes.run(str(copy), *_WORDS, **_JOB)
  assert done.returncode == 75 and fakes.calls('scontrol') == _REQUEUE


def test_tasks_and_gpus_must_agree(fakes):
  _slurm(fakes, 0)
  gpus = {'SLURM_GPUS_ON_NODE': '8', 'SLURM_NTASKS_PER_NODE': '4'}
  done = fakes.run('slurm.sbatch', *_WORDS, **_JOB, **gpus)
  assert done.returncode == 2 and 'one task per GPU' in done.stderr
  assert not fakes.calls()


def test_a_missing_environment_is_named(fakes):
  done = fakes.run('slurm.sbatch', *_WORDS, SLURM_JOB_ID='7')
  assert done.returncode == 2 and '.venv/bin/python' in done.stderr


def test_directives():
  """The signal goes to the tasks (no B:); all before the first command."""
  text = _SCRIPT.read_text()
  directives = re.findall(r'^#SBATCH (.*)$', text.partition('\nset ')[0], re.M)
  assert len(directives) == text.count('#SBATCH --')
  assert {'--requeue', '--open-mode=append', '--signal=USR1@120'} <= {
    *directives
  }
  values = dict(d.split('=', 1) for d in directives if '=' in d)
  assert values['--ntasks-per-node'] == values['--gpus-per-node']
