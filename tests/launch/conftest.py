"""Stand-ins for the programs that the launchers call, and a way to run them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Notes its call in a file, then does what the first rule says whose text is
# in its arguments.
_FAKE = """#!{python} -IS
import json, pathlib, sys, time
here = pathlib.Path({folder!r})
name, words = {name!r}, sys.argv[1:]
text = '' if {quiet} else sys.stdin.read()
with open(here / 'calls', 'a') as calls:
  calls.write(json.dumps([name, *words]) + '\\n')
if text:
  (here / (name + '.stdin')).write_text(text)
rules = here / (name + '.rules')
for rule in json.loads(rules.read_text()) if rules.exists() else []:
  if rule['match'] in ' '.join(words):
    if 'touch' in rule:
      (here / rule['touch']).touch()
    print(rule.get('out', ''), end='', flush=True)
    print(rule.get('err', ''), end='', file=sys.stderr)
    for _ in range(1000):
      if 'until' not in rule or (here / rule['until']).exists():
        break
      time.sleep(0.01)
    sys.exit(rule.get('code', 0))
"""


class Fakes:
  """A folder of stand-ins, first in PATH."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.bin = folder / 'bin'
    self.bin.mkdir()
    self.env = os.environ | {'PATH': f'{self.bin}:/usr/bin:/bin'}
    for name in [n for n in self.env if n.startswith(('SLURM_', 'PYTHON'))]:
      del self.env[name]

  def add(self, name: str, *rules: dict, stdin: bool = False) -> None:
    """A program; each rule has `match` and any of code, out, err, touch, until.

    `until` names a file here to wait for, `touch` one to make. With `stdin`
    its input is kept, see `stdin_of`.
    """
    text = _FAKE.format(
      python=sys.executable,
      folder=str(self.folder),
      name=name,
      quiet=not stdin,
    )
    (self.bin / name).write_text(text)
    (self.bin / name).chmod(0o755)
    (self.folder / f'{name}.rules').write_text(json.dumps(rules))

  def calls(self, name: str = '') -> list[list[str]]:
    """The calls so far, of one program or of all: name and arguments."""
    path = self.folder / 'calls'
    lines = path.read_text().splitlines() if path.exists() else []
    return [call for call in map(json.loads, lines) if name in ('', call[0])]

  def stdin_of(self, name: str) -> str:
    return (self.folder / f'{name}.stdin').read_text()

  def run(
    self, script: str, *words: str, **env: str
  ) -> subprocess.CompletedProcess[str]:
    """Runs a file of launch/ to its end, in the folder of the stand-ins."""
    return subprocess.run(
      ['bash', str(ROOT / 'launch' / script), *words],
      cwd=self.folder,
      env=self.env | env,
      capture_output=True,
      text=True,
      timeout=60,
      stdin=subprocess.DEVNULL,
    )

  def start(self, script: str, *words: str, **env: str) -> subprocess.Popen:
    """Starts a file of launch/, for a test that sends signals."""
    return subprocess.Popen(
      ['bash', str(ROOT / 'launch' / script), *words],
      cwd=self.folder,
      env=self.env | env,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )


@pytest.fixture
def fakes(tmp_path) -> Fakes:
  return Fakes(tmp_path)
