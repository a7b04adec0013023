"""Completion, in the shells themselves."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pexpect
import pytest

from craft_jax.cli import completion
from craft_jax.config import load as config_lib

# pexpect forks, of which JAX warns where other tests have loaded it.
pytestmark = pytest.mark.filterwarnings('ignore:os.fork')

_ROOT = pathlib.Path(__file__).parents[2]
_SECONDS = 60  # for an answer, on a machine that is busy

# What is typed before the key, and the words of the line after it; `...` is a
# line that goes on, without a space at its end.
_LINES = [
  ('craft conf', 'craft config'),
  ('craft help samp', 'craft help sample'),
  ('craft train --conf', 'craft train --config=...'),
  ('craft eval --split=te', 'craft eval --split=test'),
  ('craft runs list --rev', 'craft runs list --reverse'),
  ('craft --config=dick', 'craft --config=dickens...'),
  ('craft train --config=base:sm', 'craft train --config=base:small'),
  ('craft train --config=min', 'craft train --config=mine.py'),
  ('craft config diff toy shakespeare_cpu:m',
   'craft config diff toy shakespeare_cpu:minutes'),
  ('craft train --config.op', 'craft train --config.optim....'),
  ('craft --config.optim.warm', 'craft --config.optim.warmup_steps=...'),
  ('craft --config.optim.name=ada', 'craft --config.optim.name=ada...'),
  ('craft --config.optim.name=mu', 'craft --config.optim.name=muon'),
  ('craft --config.model.tied=t', 'craft --config.model.tied=true'),
  ('craft config docs optim.warm', 'craft config docs optim.warmup_steps'),
  ('craft eval --workdir=runs/f', 'craft eval --workdir=runs/first'),
  ('craft runs show runs/f', 'craft runs show runs/first'),
  ('craft compress no', 'craft compress notes.txt'),
]  # fmt: skip


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with things to complete, and the environment of its shells."""
  folder = tmp_path_factory.mktemp('completion')
  craft = folder / 'bin' / 'craft'
  craft.parent.mkdir()
  craft.write_text(
    f'#!/bin/sh\nexec "{sys.executable}" -m craft_jax.main "$@"\n'
  )
  craft.chmod(0o755)
  work = folder / 'work'
  for run in ('first', 'second'):
    (work / 'runs' / run).mkdir(parents=True)
    for name in ('config.json', 'metadata.json'):
      (work / 'runs' / run / name).write_text('{}')
  (work / 'mine.py').touch()
  (work / 'notes.txt').touch()
  env = os.environ | {
    'PATH': f'{craft.parent}{os.pathsep}{os.environ["PATH"]}',
    'PYTHONPATH': str(_ROOT),
    'HOME': str(folder),
    'TERM': 'dumb',
  }
  return work, env


class Shell:
  """An interactive bash or zsh that has run `craft completion`."""

  def __init__(self, name, place):
    folder, env = place
    flags = ['-f'] if name == 'zsh' else ['--norc', '--noprofile']
    self.process = pexpect.spawn(
      shutil.which(name), [*flags, '-i'], env=env, cwd=str(folder),
      encoding='utf-8', dimensions=(50, 200), timeout=_SECONDS,
    )  # fmt: skip
    setup = {
      'bash': "bind 'set enable-bracketed-paste off'",
      'zsh': 'bindkey -e; autoload -U compinit; compinit -u -D',
    }[name]
    line = f'{setup}; eval "$(craft completion {name})"; echo rea""dy'
    self.process.sendline(line)
    self.process.expect('ready\r')

  def complete(self, text):
    """The line after the key is pressed at its end."""
    self.process.send(f'{text}\t')
    # What ^X reads waits in the terminal until the answer has come. The line is
    # quoted, not run.
    self.process.send("@\x01printf '<%s>' '\x05'; echo do\"\"ne\r")
    self.process.expect('done\r')
    found = re.findall(r'<(.*?)@>', self.process.before)
    return found[-1]


@pytest.fixture(scope='module', params=['bash', 'zsh', 'fish'])
def complete(request, place):
  """`complete(text) -> the line, or the candidates of fish`."""
  name = request.param
  if shutil.which(name) is None:
    pytest.skip(f'{name} is not installed')
  if name != 'fish':
    shell = Shell(name, place)
    yield shell.complete
    shell.process.close(force=True)
    return
  folder, env = place
  (folder / 'craft.fish').write_text(_printed('fish', env))

  def fish(text):
    done = subprocess.run(
      ['fish', '--no-config', '-c', 'source craft.fish; complete -C $argv',
       text],
      cwd=folder, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = [line.split('\t')[0] for line in done.stdout.splitlines()]
    common = os.path.commonprefix(words)  # noqa: RUF071
    end = ' ' if len(words) == 1 and common[-1] not in '=/.' else ''
    return f'{text.rpartition(" ")[0]} {common}{end}'

  yield fish


def _printed(shell, env):
  return subprocess.run(
    ['craft', 'completion', shell],
    env=env, capture_output=True, text=True, check=True,
  ).stdout  # fmt: skip


@pytest.mark.slow
def test_the_shell_completes(complete):
  wrong = {}
  for typed, expected in _LINES:
    line = complete(typed)
    goes_on = expected.endswith('...')
    expected = expected.removesuffix('...')
    if line != expected + ('' if goes_on else ' '):
      wrong[typed] = line
  assert not wrong


def _asked(line, place):
  """What the program answers a shell, one candidate a line."""
  folder, env = place
  answer = folder.parent / 'answer'
  subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'craft_jax.main'],
    cwd=folder,
    env=env
    | {
      '_ARGCOMPLETE': '1',
      '_ARGCOMPLETE_IFS': '\n',
      '_ARGCOMPLETE_STDOUT_FILENAME': str(answer),
      'COMP_LINE': line,
      'COMP_POINT': str(len(line)),
    },
    capture_output=True,
    check=True,
  )
  return answer.read_text().splitlines()


def test_all_configs_and_variants_are_offered(place):
  found = _asked('craft train --config=', place)
  for spec in ('base', 'base:nano', 'text:small', 'dickens:gpu', 'toy'):
    assert f'--config={spec}' in found


def test_every_setting_is_offered():
  for name, kind, field in config_lib.settings():
    section = name.rpartition('.')[0]
    prefix = f'--config.{section}.' if section else '--config.'
    assert f'--config.{name}=' in completion.setting_flags(prefix)
    values = completion.setting_flags(f'--config.{name}=')
    for choice in field.metadata['choices']:
      assert f'--config.{name}={choice}' in values
    if kind is bool:
      assert len(values) == 2
  assert completion.setting_flags('--config.nothing') == {}
  assert completion.setting_flags('--config.nothing=') == {}


@pytest.mark.parametrize(
  'line',
  [
    'craft ', 'craft train --', 'craft sample --', 'craft --config.model.',
    'craft runs show ', 'craft config docs ',
  ],
)  # fmt: skip
def test_nothing_heavy_is_imported(line, place):
  """A key that is pressed must be answered at once."""
  folder, env = place
  code = (
    'import atexit, os, sys\n'
    'from craft_jax import main\n'
    'leave = os._exit\n'
    'def told(code):\n'
    "  heavy = {'jax', 'numpy', 'ml_collections', 'yaml', 'rich'}\n"
    '  leave(9 if heavy & set(sys.modules) else code)\n'
    'os._exit = told\n'
    'import argcomplete\n'
    'call = argcomplete.CompletionFinder.__call__\n'
    'argcomplete.CompletionFinder.__call__ = (\n'
    '  lambda *args, **more: call(*args, exit_method=told, **more))\n'
    'main.console()\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=folder,
    env=env
    | {
      '_ARGCOMPLETE': '1',
      '_ARGCOMPLETE_STDOUT_FILENAME': os.devnull,
      'COMP_LINE': line,
      'COMP_POINT': str(len(line)),
    },
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
