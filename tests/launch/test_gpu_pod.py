"""`launch/gpu_pod.sh`: what it renders is valid, and says what it should."""

import json
import pathlib

import jsonschema
import kubernetes_validate
import pytest
import yaml

_SCHEMA = json.loads(
  (pathlib.Path(__file__).parent / 'jobset_v1alpha2.json').read_text()
)
_LATEST = kubernetes_validate.latest_version()
_WORDS = ['--image=reg.io/a/craft:cuda12', '--nodes=3', '--gpus=4', '--claim=c']


def _render(fakes, *words: str) -> dict:
  done = fakes.run('gpu_pod.sh', *_WORDS, '--dry-run', *words)
  assert done.returncode == 0, done.stderr
  return yaml.safe_load(done.stdout)


def _job(jobset: dict) -> dict:
  (replicated,) = jobset['spec']['replicatedJobs']
  return replicated['template']['spec']


def _pod(jobset: dict) -> dict:
  return _job(jobset)['template']['spec']


def test_dry_run_calls_nothing(fakes):
  fakes.add('kubectl')
  assert _render(fakes)['kind'] == 'JobSet'
  assert not fakes.calls()


def test_jobset_is_valid(fakes):
  jobset = _render(fakes, '--name=run', '--', '--config=base')
  jsonschema.Draft202012Validator.check_schema(_SCHEMA)
  jsonschema.validate(jobset, _SCHEMA)
  jobset['spec']['network']['subDomain'] = 'x'
  with pytest.raises(jsonschema.ValidationError, match='subDomain'):
    jsonschema.validate(jobset, _SCHEMA)


@pytest.mark.parametrize('version', ['1.29', _LATEST])
def test_job_is_valid(fakes, version):
  spec = _job(_render(fakes))
  job = {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': {'name': 'x'},
    'spec': spec,
  }
  kubernetes_validate.validate(job, version, strict=True)
  spec['template']['spec']['containers'][0]['arg'] = []
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, version, strict=True)


def test_processes_find_each_other(fakes):
  jobset = _render(fakes, '--name=run', '--', '--config=base')
  network, job = jobset['spec']['network'], _job(jobset)
  assert network['enableDNSHostnames']
  assert job['completionMode'] == 'Indexed'
  assert job['completions'] == job['parallelism'] == 3
  (container,) = _pod(jobset)['containers']
  workers = jobset['spec']['replicatedJobs'][0]['name']
  host = f'run-{workers}-0-0.{network["subdomain"]}'
  assert container['args'] == [
    *('train', f'--coordinator={host}:8476', '--num-processes=3'),
    *('--process-id=$(PROCESS_ID)', '--config=base', '--workdir=/work/run'),
  ]
  env = {e['name']: e for e in container['env']}
  field = env['PROCESS_ID']['valueFrom']['fieldRef']['fieldPath']
  assert 'batch.kubernetes.io/job-completion-index' in field
  assert env['JAX_LOCAL_DEVICE_IDS']['value'] == '0,1,2,3'
  assert container['resources']['limits'] == {'nvidia.com/gpu': 4}


def test_what_fails_and_what_restarts(fakes):
  """1 and 2 fail the Job by its policy, and that fails the JobSet."""
  jobset = _render(fakes, '--restarts=5')
  failure, job = jobset['spec']['failurePolicy'], _job(jobset)
  assert failure['maxRestarts'] == 5
  (rule,) = failure['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [1, 2]
  assert (
    rule['onExitCodes']['containerName']
    == _pod(jobset)['containers'][0]['name']
  )
  # Anything else uses up the limit at once, and the JobSet starts again.
  assert job['backoffLimit'] == 0
  # Which podFailurePolicy needs.
  assert _pod(jobset)['restartPolicy'] == 'Never'
  assert _pod(jobset)['terminationGracePeriodSeconds'] >= 120


def test_flags_arrive_as_they_are(fakes):
  flags = ['--a=x: "y" # {{name}}', '--b=$(PROCESS_ID)', "--c='\\", '--d=$$ é']
  jobset = _render(fakes, '--', 'eval', '--workdir=gs://b/r', *flags)
  args = _pod(jobset)['containers'][0]['args']
  assert args[0] == 'eval' and args[4] == '--workdir=gs://b/r'
  # Kubernetes turns $$ into $.
  assert [arg.replace('$$', '$') for arg in args[5:]] == flags
  assert len(args) == 9


def test_mounts_and_user(fakes):
  pod = _pod(_render(fakes))
  volumes = {v['name']: v for v in pod['volumes']}
  mounts = pod['containers'][0]['volumeMounts']
  assert {m['name'] for m in mounts} == volumes.keys()
  claim = volumes['work']['persistentVolumeClaim']['claimName']
  assert claim == 'c' and pod['containers'][0]['image'].endswith('craft:cuda12')
  assert pod['securityContext']['runAsNonRoot']


def test_apply(fakes):
  fakes.add('kubectl', stdin=True)
  done = fakes.run('gpu_pod.sh', *_WORDS, '--namespace=team', '--', '--x=1')
  assert done.returncode == 0, done.stderr
  assert fakes.calls() == [['kubectl', 'apply', '--namespace=team', '-f', '-']]
  applied = yaml.safe_load(fakes.stdin_of('kubectl'))
  assert applied == _render(fakes, '--', '--x=1')
  assert 'kubectl logs' in done.stdout and '--namespace=team' in done.stdout


def test_a_refusal_is_passed_on(fakes):
  fakes.add('kubectl', {'match': 'apply', 'err': 'forbidden\n', 'code': 3})
  done = fakes.run('gpu_pod.sh', *_WORDS)
  assert done.returncode == 3 and 'forbidden' in done.stderr
  assert 'kubectl logs' not in done.stdout


def test_delete(fakes):
  fakes.add('kubectl')
  words = ['--name=run', '--delete']
  assert fakes.run('gpu_pod.sh', *words, '--dry-run').returncode == 0
  assert not fakes.calls()
  assert fakes.run('gpu_pod.sh', *words).returncode == 0
  assert fakes.calls() == [['kubectl', 'delete', 'jobset', 'run']]
