"""What the pages show is run.

A block is marked `python` (run as it stands, `runs/first` being a tiny model
over bytes), `console` (its lines that begin
with `$ craft` or `$ curl`, and `$ printf` to make a file, are run; a page's
blocks share a folder and run in order) or `text` (shown only). There is no list
of exceptions: a block that cannot be run is `text`.

`$ craft serve ... &` is a server for the rest of the page, and a `python` block
with `:8000` in it is given one of `runs/first`. Each gets a free port, which
stands for 8000 in what is run and shown.

What stands below a command is its output, compared with what it prints; `...`
is any text. If it begins with `craft: `, it is what a mistake is answered with.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from craft_jax.config import describe

_ROOT = pathlib.Path(__file__).parents[1]
_QUICK = {'XLA_FLAGS': os.environ['QUICK_XLA_FLAGS']}
_PAGES = sorted([*_ROOT.glob('*.md'), *(_ROOT / 'docs').glob('*.md')])
# What compiles a model takes more than a few seconds.
_HEAVY = {
  'console': re.compile(
    r'^\$ craft (--|train|eval|score|sample|compress|profile|sweep)',
    re.MULTILINE,
  ),
  'python': re.compile(r'model\.build|runs/first|:8000'),
}


class Block(NamedTuple):
  """A fenced block: its page, first line, language and text."""

  page: pathlib.Path
  line: int
  language: str
  text: str


def blocks(page: pathlib.Path, text: str) -> list[Block]:
  """The fenced blocks of a page, in order."""
  found, start, language = [], 0, ''
  lines = text.split('\n')
  for number, line in enumerate(lines):
    if not line.startswith('```'):
      continue
    if not start:
      start, language = number + 1, line.removeprefix('```').strip()
    else:
      body = '\n'.join(lines[start:number]) + '\n'
      found.append(Block(page, start, language, body))
      start = 0
  assert not start, f'{page.name}:{start}: the block is never closed'
  return found


_BLOCKS = [b for p in _PAGES for b in blocks(p, p.read_text(encoding='utf-8'))]
_CONSOLE = {
  page: ''.join(
    b.text for b in _BLOCKS if b.page == page and b.language == 'console'
  )
  for page in _PAGES
}


class Step(NamedTuple):
  """A command without its prompt, and the output shown below it, or ''."""

  command: str
  output: str


def steps(console: str) -> list[Step]:
  """What is run of console blocks."""
  text = console.replace('\\\n', ' ')
  shown = re.findall(r'^\$ (.*)\n((?:(?!\$ ).*\n)*)', text, re.MULTILINE)
  return [
    Step(command, output)
    for command, output in shown
    if re.match(r'(craft|printf|curl)\b', command)
  ]


def is_as_shown(text: str, shown: str) -> bool:
  """Whether an output is what a page shows."""
  parts = [re.escape(part) for part in shown.strip().split('...')]
  return re.fullmatch('.*'.join(parts), text.strip(), re.DOTALL) is not None


@pytest.mark.parametrize(
  'block', _BLOCKS, ids=lambda b: f'{b.page.name}:{b.line}'
)
def test_language_is_known(block):
  assert block.language in ('python', 'console', 'text')


def _marks(language: str, text: str) -> list:
  return [pytest.mark.slow] if _HEAVY[language].search(text) else []


class Served(NamedTuple):
  """The port of a server, and the line in which it says so."""

  port: str
  line: str


@contextlib.contextmanager
def served(command: str, folder: pathlib.Path, env: dict) -> Iterator[Served]:
  """A server that a page starts, on a free port; ended with the page."""
  with subprocess.Popen(
    ['bash', '-c', f'exec {command} --port=0'],
    cwd=folder,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as process:
    try:
      assert process.stdout is not None
      line = process.stdout.readline()
      found = re.search(r':(\d+)/$', line)
      assert found, f'$ {command}\n{line}'
      yield Served(found[1], line)
    finally:
      process.terminate()
  assert process.returncode == 0


@pytest.mark.parametrize(
  'block',
  [
    pytest.param(b, marks=_marks('python', b.text))
    for b in _BLOCKS
    if b.language == 'python'
  ],
  ids=lambda b: f'{b.page.name}:{b.line}',
)
def test_python_runs(block, tmp_path, monkeypatch, byte_run):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'first').symlink_to(byte_run)
  # Blank lines in front, so that a traceback gives the line of the page.
  source = '\n' * block.line + block.text
  with contextlib.ExitStack() as ends:
    if ':8000' in source:
      command = f'{sys.executable} -m craft_jax.main serve --workdir=runs/first'
      env = os.environ | _QUICK | {'PYTHONPATH': str(_ROOT)}
      server = ends.enter_context(served(command, tmp_path, env))
      source = source.replace(':8000', f':{server.port}')
    exec(compile(source, str(block.page), 'exec'), {'__name__': '__main__'})


@pytest.mark.parametrize(
  'page',
  [
    pytest.param(page, marks=_marks('console', text))
    for page, text in _CONSOLE.items()
    if steps(text)
  ],
  ids=lambda page: page.name,
)
def test_commands_run(page, tmp_path):
  craft = tmp_path / 'bin' / 'craft'
  craft.parent.mkdir()
  craft.write_text(
    f'#!/bin/sh\nexec "{sys.executable}" -m craft_jax.main "$@"\n'
  )
  craft.chmod(0o755)
  folder = tmp_path / 'work'
  folder.mkdir()
  env = (
    _QUICK
    | os.environ
    | {
      'PATH': f'{craft.parent}{os.pathsep}{os.environ["PATH"]}',
      'PYTHONPATH': str(_ROOT),
    }
  )
  with contextlib.ExitStack() as ends:
    port = '8000'
    for command, shown in steps(_CONSOLE[page]):
      command = command.replace(':8000', f':{port}')
      if command.endswith(' &'):
        server = ends.enter_context(served(command[:-2], folder, env))
        port = server.port
        done = subprocess.CompletedProcess(command, 0, server.line, '')
      else:
        done = subprocess.run(
          ['bash', '-o', 'pipefail', '-c', command],
          cwd=folder,
          env=env,
          capture_output=True,
          text=True,
          stdin=subprocess.DEVNULL,
        )
      is_mistake = shown.startswith('craft: ')
      said = f'$ {command}\n{done.stdout}{done.stderr}'
      assert done.returncode == (2 if is_mistake else 0), said
      text = done.stderr if is_mistake else done.stdout
      text = text.replace(f':{port}', ':8000')
      assert not shown or is_as_shown(text, shown), said


@pytest.mark.parametrize('page', _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  text = page.read_text(encoding='utf-8')
  for target in re.findall(r'\]\(([^)#\s]+)[^)]*\)', text):
    if '://' not in target:
      assert (page.parent / target).exists(), f'{page.name}: {target}'


def test_index_lists_every_page():
  text = (_ROOT / 'docs' / 'index.md').read_text(encoding='utf-8')
  for page in (_ROOT / 'docs').glob('*.md'):
    assert page.name == 'index.md' or f']({page.name})' in text, page.name


def test_settings_reference_is_fresh():
  page = (_ROOT / 'docs' / 'configuration.md').read_text(encoding='utf-8')
  assert describe.refreshed(page) == page, (
    'stale; refresh it: craft config docs --write docs/configuration.md'
  )


def test_blocks_and_commands_are_found():
  page = pathlib.Path('p.md')
  text = 'a\n```console\n$ craft x \\\n  --y\nout\n$ ls\n```\nb\n```\nz\n```\n'
  console, plain = blocks(page, text)
  assert (console.line, console.language) == (2, 'console')
  assert steps(console.text) == [Step('craft x    --y', 'out\n')]
  assert plain == Block(page, 9, '', 'z\n')


def test_outputs_are_compared():
  two = steps('$ craft a\none\ntwo\n$ printf x > y\n$ craft b\n')
  assert two == [
    Step('craft a', 'one\ntwo\n'), Step('printf x > y', ''),
    Step('craft b', ''),
  ]  # fmt: skip
  assert is_as_shown('one\ntwo\n', 'one\ntwo\n')
  assert is_as_shown('{"a": -0.25, "b": 1}\n', '{"a": -0..., "b": 1}\n')
  assert is_as_shown('1\n2\n3\n4\n', '1\n...\n4\n')
  for wrong in ('one', 'one\ntwo\nthree', 'One\ntwo', ''):
    assert not is_as_shown(wrong, 'one\ntwo\n')


def test_no_placeholder_is_left():
  for path in [*_PAGES, *(_ROOT / 'configs').glob('*.py')]:
    found = re.findall(r'@[A-Z]+@', path.read_text(encoding='utf-8'))
    assert not found, f'{path.name}: {found}'
