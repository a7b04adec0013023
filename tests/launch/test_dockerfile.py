"""`launch/Dockerfile`: read, not built; there may be no Docker here."""

import pathlib
import re
import tomllib

_ROOT = pathlib.Path(__file__).parents[2]
_TEXT = (_ROOT / 'launch' / 'Dockerfile').read_text()
_LINES = [
  line.split()
  for line in re.sub(r'\\\n', ' ', _TEXT).splitlines()
  if line and not line.startswith('#')
]


def _stages() -> dict[str, list[list[str]]]:
  """Lines of each stage, by its name."""
  stages: dict[str, list[list[str]]] = {}
  for line in _LINES:
    if line[0] == 'FROM':
      assert line[2] == 'AS'
      stages[line[3]] = []
    stages[list(stages)[-1]].append(line)
  return stages


def _chain(name: str) -> list[list[str]]:
  """Lines of a stage after those of the stages that it starts from."""
  lines = _stages()[name]
  base = lines[0][1]
  return (_chain(base) if base in _stages() else []) + lines


def test_every_instruction_is_known():
  assert {line[0] for line in _LINES} == {
    *('FROM', 'WORKDIR', 'COPY', 'RUN', 'ENV', 'USER', 'ENTRYPOINT')
  }


def test_targets():
  extras = tomllib.loads((_ROOT / 'pyproject.toml').read_text())['project'][
    'optional-dependencies'
  ]
  assert {'cuda12', 'remote', 'serve'} <= extras.keys()
  for target in ('cpu', 'cuda12'):
    lines = _chain(target)
    assert lines[0][1] == 'python:3.11-slim'
    assert ['ENTRYPOINT', '["craft"]'] in lines
    assert ['USER', '1000:1000'] in lines
    (copy,) = [line for line in lines if line[0] == 'COPY']
    assert copy[1:] == [f'--from=install-{target}', '/opt/craft', '/opt/craft']
    install = ' '.join(_stages()[f'install-{target}'][-1])
    assert '--constraint constraints.txt' in install
    extra = {'cpu': 'remote,serve', 'cuda12': 'cuda12,remote,serve'}[target]
    assert install.endswith(f"'.[{extra}]'")
  assert list(_stages())[-1] == 'cpu'


def test_stages_come_before_their_use():
  seen: set[str] = set()
  for name, lines in _stages().items():
    for line in lines:
      for word in line:
        if word.startswith('--from='):
          assert word.removeprefix('--from=') in seen
    assert lines[0][1] in seen | {'python:3.11-slim'}
    seen.add(name)


def test_what_is_copied_is_there_and_sent():
  allowed = {
    line.removeprefix('!')
    for line in (_ROOT / '.dockerignore').read_text().splitlines()
    if line.startswith('!')
  }
  copied = {
    source
    for line in _LINES
    if line[0] == 'COPY' and '--from' not in line[1]
    for source in line[1:-1]
  }
  assert copied == allowed
  assert all((_ROOT / source).exists() for source in copied)


def test_the_package_finds_what_it_is_built_from():
  """Files that pyproject.toml names are copied."""
  project = tomllib.loads((_ROOT / 'pyproject.toml').read_text())
  copied = {word for line in _LINES if line[0] == 'COPY' for word in line[1:]}
  assert project['project']['readme'] in copied
  assert {*project['project']['license-files']} <= copied
  folders = project['tool']['setuptools']['package-dir'].values()
  assert {*folders} <= copied
