"""What holds for every script in launch/."""

import pathlib
import re
import shutil
import subprocess
import sysconfig

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_SCRIPTS = sorted(
  [*(_ROOT / 'launch').glob('*.sh'), *(_ROOT / 'launch').glob('*.sbatch')]
)
_LAUNCHERS = [
  'local.sh', 'slurm.sbatch', 'tpu_pod.sh', 'gpu_pod.sh', 'sweep.sbatch',
  'sweep_pods.sh',
]  # fmt: skip


def test_shellcheck():
  # Installed with the tests; never skipped.
  path = f'{sysconfig.get_path("scripts")}:/usr/local/bin:/usr/bin'
  program = shutil.which('shellcheck', path=path)
  assert program, "install the extra 'tests': it brings shellcheck"
  done = subprocess.run(
    [program, '--external-sources', f'--source-path={_ROOT}', *_SCRIPTS],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('script', [*_LAUNCHERS, 'tpu_worker.sh'])
def test_help_is_the_head_of_the_file(fakes, script):
  done = fakes.run(script, '--help')
  assert done.returncode == 0 and not done.stderr
  assert '#' not in done.stdout and 'set -euo' not in done.stdout
  text = (_ROOT / 'launch' / script).read_text()
  assert done.stdout.splitlines()[0] in text
  assert (_ROOT / 'launch' / script).stat().st_mode & 0o111 or (
    script.endswith('.sbatch')
  )


@pytest.mark.parametrize('script', _LAUNCHERS)
def test_help_lists_every_option(fakes, script):
  listed = set(
    re.findall(r'^  (--[a-z-]+) ', fakes.run(script, '--help').stdout, re.M)
  )
  text = (_ROOT / 'launch' / script).read_text().replace('\\\n', '')
  patterns = re.findall(r'^ +(--[a-z].*?)\)', text, re.M)
  taken = set(re.findall(r'--[a-z-]+', ' '.join(patterns)))
  assert taken - {'--workdir'} == listed


_GPU = ['--image=i', '--nodes=2', '--gpus=1', '--claim=c']
_SWEEP = ['--image=i', '--runs=6', '--gpus=1', '--claim=c']
_TPU = ['--name=a', '--zone=z', '--type=v4-8']
_BAD = [
  ('local.sh', [], '--processes'),
  ('local.sh', ['--processes'], 'needs a value'),
  ('local.sh', ['--processes=0'], 'from 1 up'),
  ('local.sh', ['--processes=2', '--port=99999'], '--port'),
  ('local.sh', ['--processes=2', '--grace=soon'], '--grace'),
  ('slurm.sbatch', ['--config=toy'], '--workdir'),
  ('slurm.sbatch', ['--restarts=x', '--workdir=w'], '--restarts'),
  ('slurm.sbatch', ['--workdir=w'], 'not in a SLURM job'),
  ('tpu_pod.sh', ['--zone=z'], '--name'),
  ('tpu_pod.sh', ['--name=$(x)', '--zone=z'], '--name'),
  ('tpu_pod.sh', [*_TPU, '--config=toy'], '--config'),
  ('tpu_pod.sh', [*_TPU, '--', '--workdir=runs/x'], 'gs://'),
  ('tpu_pod.sh', [*_TPU, '--', '--config=toy'], 'gs://'),
  ('tpu_pod.sh', [*_TPU[:2], '--type=v9-8', '--', '--workdir=gs://b'], 'v9-8'),
  ('tpu_worker.sh', ['jump'], 'jump'),
  ('gpu_pod.sh', _GPU[1:], '--image'),
  ('gpu_pod.sh', [*_GPU, '--image=a b'], '--image'),
  ('gpu_pod.sh', [*_GPU, '--nodes=1.5'], '--nodes'),
  ('gpu_pod.sh', [*_GPU, '--name=A_b'], '--name'),
  ('gpu_pod.sh', [*_GPU, '--claim=/x'], '--claim'),
  ('gpu_pod.sh', [*_GPU, '--', '--workdir=runs/x'], '--workdir'),
  ('sweep.sbatch', [], 'flags of craft sweep'),
  ('sweep.sbatch', ['--restarts=x', 'base'], '--restarts'),
  ('sweep.sbatch', ['base', '--seeds=2'], '.venv/bin/python'),
  ('sweep_pods.sh', _SWEEP[1:], '--image'),
  ('sweep_pods.sh', [*_SWEEP, '--runs=0'], '--runs'),
  ('sweep_pods.sh', [*_SWEEP, '--at-a-time=0'], '--at-a-time'),
  ('sweep_pods.sh', [*_SWEEP, '--name=A_b'], '--name'),
  ('sweep_pods.sh', [*_SWEEP, '--', '--workdir=az://b/s'], '--workdir'),
]


@pytest.mark.parametrize(('script', 'words', 'named'), _BAD)
def test_a_mistake_is_one_line(fakes, script, words, named):
  for program in ('gcloud', 'kubectl', 'srun', 'scontrol', 'git'):
    fakes.add(program)
  done = fakes.run(script, *words)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert named in done.stderr
  assert not fakes.calls()


@pytest.mark.parametrize(
  ('codes', 'code'),
  [
    ('0 0 0', 0),
    ('75 0', 75),
    ('75 75', 75),
    ('75 69', 69),
    ('137 0', 69),
    ('69 1 69', 1),
    ('127 69', 1),
    ('2 1 69 75', 2),
    ('', 0),
  ],
)
def test_one_code_for_many(codes, code):
  done = subprocess.run(
    ['bash', '-c', f'source launch/options.sh; combine_codes {codes}'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert done.stdout == str(code) and not done.stderr


def test_printed_commands_can_be_pasted():
  words = ['plain', '', 'a b', "it's", '$(date)', '--x=1,2', 'a\\b', '*']
  shown = subprocess.run(
    ['bash', '-c', 'source launch/options.sh; print_command "$@"', '_', *words],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  ).stdout
  again = subprocess.run(
    ['sh', '-c', f"printf '%s\\n' {shown}"], capture_output=True, text=True
  )
  assert again.stdout.split('\n')[:-1] == words
