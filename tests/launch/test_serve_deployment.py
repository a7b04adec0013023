"""The unit of systemd and the objects of Kubernetes that run `craft serve`."""

import argparse
import configparser
import copy
import pathlib
import re
import shlex
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from craft_jax import main as entry

_LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
_UNIT = _LAUNCH / 'craft-serve.service'
_OBJECTS = list(yaml.safe_load_all((_LAUNCH / 'serve.yaml').read_text()))
_VERSIONS = ['1.29', kubernetes_validate.latest_version()]


def _flags(words: list[str]) -> argparse.Namespace:
  assert words[0] == 'serve'
  return entry.parse('serve', words[1:])[1]


@pytest.fixture
def pod():
  return _OBJECTS[0]['spec']['template']['spec']


@pytest.mark.parametrize('version', _VERSIONS)
@pytest.mark.parametrize('number', range(len(_OBJECTS)))
def test_objects_are_valid(number, version):
  kubernetes_validate.validate(_OBJECTS[number], version, strict=True)


@pytest.mark.parametrize('version', _VERSIONS)
def test_a_wrong_one_is_not(version):
  wrong = copy.deepcopy(_OBJECTS[0])
  wrong['spec']['template']['spec']['containers'][0]['arg'] = []
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(wrong, version, strict=True)


def test_the_service_finds_the_pods():
  deployment, service = _OBJECTS
  labels = deployment['spec']['template']['metadata']['labels']
  assert service['spec']['selector'] == labels
  assert deployment['spec']['selector']['matchLabels'] == labels
  (container,) = deployment['spec']['template']['spec']['containers']
  (port,) = container['ports']
  (outer,) = service['spec']['ports']
  args = _flags(container['args'])
  assert port['containerPort'] == args.port
  assert outer['targetPort'] == port['name']
  assert service['metadata']['name'] in args.allowed_host


def test_a_pod_drains_within_its_grace(pod):
  (container,) = pod['containers']
  command = container['lifecycle']['preStop']['exec']['command']
  assert command[0] == 'sleep'
  wait = int(command[1])
  ready = container['readinessProbe']
  assert wait > ready['periodSeconds'] * ready['failureThreshold']
  grace = _flags(container['args']).grace
  assert pod['terminationGracePeriodSeconds'] >= wait + grace + 5


def test_probes_pass_the_check_of_hosts(pod):
  (container,) = pod['containers']
  paths = {}
  for name in ('startup', 'liveness', 'readiness'):
    get = container[f'{name}Probe']['httpGet']
    assert get['httpHeaders'] == [{'name': 'Host', 'value': 'localhost'}]
    assert get['port'] == container['ports'][0]['name']
    paths[name] = get['path']
  assert paths == {
    'startup': '/health', 'liveness': '/health', 'readiness': '/ready',
  }  # fmt: skip


def test_a_pod_may_do_little(pod):
  (container,) = pod['containers']
  assert pod['securityContext']['runAsNonRoot']
  assert pod['securityContext']['seccompProfile']['type'] == 'RuntimeDefault'
  assert not pod['automountServiceAccountToken']
  inner = container['securityContext']
  assert inner['capabilities'] == {'drop': ['ALL']}
  assert inner['readOnlyRootFilesystem']
  assert not inner['allowPrivilegeEscalation']
  assert container['resources']['limits'].keys() == {'memory'}
  mounts = {m['name']: m for m in container['volumeMounts']}
  assert mounts.keys() == {v['name'] for v in pod['volumes']}
  assert mounts['work']['readOnly'] and mounts['keys']['readOnly']
  # Keys are in a secret, and not on the command line.
  args = _flags(container['args'])
  folder, _, name = args.keys_file.rpartition('/')
  assert (folder, name) == (mounts['keys']['mountPath'], 'keys')
  caches = {e['name']: e['value'] for e in container['env']}
  assert caches['CRAFT_CACHE'] == mounts['cache']['mountPath']


class _Unit(configparser.RawConfigParser):
  optionxform = staticmethod(str)


@pytest.fixture
def service():
  unit = _Unit(strict=True)
  unit.read_string(_UNIT.read_text().replace('\\\n', ' '))
  return unit['Service']


def test_the_unit_starts_what_there_is(service):
  program, *words = shlex.split(service['ExecStart'])
  assert program == '/opt/craft/bin/craft'
  args = _flags(words)
  assert args.host == '127.0.0.1'
  assert args.grace + 5 <= int(service['TimeoutStopSec'])
  # Keys reach it as a credential of that name.
  name = service['LoadCredential'].partition(':')[0]
  assert args.keys_file == f'${{CREDENTIALS_DIRECTORY}}/{name}'
  cache = service['Environment'].removeprefix('CRAFT_CACHE=')
  assert cache == f'/var/cache/{service["CacheDirectory"]}'
  # XLA writes programs into memory and runs them.
  assert 'MemoryDenyWriteExecute' not in service


@pytest.mark.skipif(
  not shutil.which('systemd-analyze'), reason='there is no systemd here'
)
def test_systemd_reads_the_unit(tmp_path):
  unit = tmp_path / _UNIT.name
  text = _UNIT.read_text().replace('/opt/craft/bin/craft', '/bin/true')
  unit.write_text(text)
  verify = ['systemd-analyze', 'verify', '--man=no', str(unit)]
  done = subprocess.run(verify, capture_output=True, text=True)
  about = [line for line in done.stderr.splitlines() if unit.name in line]
  assert not about
  unit.write_text(text.replace('UMask=', 'Umaks='))
  done = subprocess.run(verify, capture_output=True, text=True)
  assert 'Umaks' in done.stderr
  # 10 is a service that may do anything.
  unit.write_text(text)
  done = subprocess.run(
    ['systemd-analyze', 'security', '--offline=yes', '--no-pager', str(unit)],
    capture_output=True,
    text=True,
  )
  found = re.search(r'exposure level .*: ([\d.]+)', done.stdout)
  assert found, done.stdout + done.stderr
  assert float(found[1]) < 3
