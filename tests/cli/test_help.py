"""The page of every command and subcommand: flags, defaults, examples."""

import argparse
import re
import shlex

import pytest

from craft_jax import main as entry
from craft_jax.cli import parser as parser_lib
from craft_jax.errors import UserError

_PAGES = {
  page.prog.removeprefix('craft '): page
  for name in entry.COMMANDS
  for page in entry.open_command(name)[1].pages()
}
_MOST = 10  # flags under one heading
_HEADED = 6  # more flags than this are put under headings


def examples(page: parser_lib.Parser) -> list[list[str]]:
  """The words after `craft` of each example of a page."""
  found = []
  for line in page.examples.replace('\\\n', ' ').splitlines():
    for part in line.split(' | '):
      words = shlex.split(part.partition(' > ')[0])
      if words and words[0] == 'craft':
        found.append(words[1:])
  return found


@pytest.fixture(autouse=True)
def _width(monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')


@pytest.mark.parametrize('page', _PAGES.values(), ids=_PAGES)
def test_two_examples_end_the_page(page):
  found = examples(page)
  assert len(found) >= 2, page.examples
  for words in found:
    # Of this very command.
    assert ' '.join(words).startswith(page.prog.removeprefix('craft '))
    entry.parse(words[0], words[1:])
  last = page.format_help().rstrip().splitlines()[-1]
  assert last.startswith('  ') and last.strip() in page.examples


@pytest.mark.parametrize('page', _PAGES.values(), ids=_PAGES)
def test_flags_name_their_defaults(page):
  text = page.format_help()
  assert max(map(len, text.splitlines())) <= 80
  formatter = page._get_formatter()
  for action in page._actions:
    if action.nargs == 0 or isinstance(action, argparse._SubParsersAction):
      continue
    shown = formatter._expand_help(action)
    assert ''.join(shown.split()) in ''.join(text.split())
    default = re.search(r'\(default: (.+)\)', shown)
    assert bool(default) == parser_lib.takes_default(action), shown
    # What 0 stands for may be said in words.
    if default and action.default not in (None, '', [], (), 0):
      value = action.default
      value = f'{value:g}' if isinstance(value, float) else str(value)
      assert default[1].startswith(value), shown


@pytest.mark.parametrize('page', _PAGES.values(), ids=_PAGES)
def test_many_flags_stand_under_headings(page):
  counts = [
    sum(bool(a.option_strings) and a.dest != 'help' for a in g._group_actions)
    for g in page._action_groups
  ]
  assert max(counts) <= _MOST
  assert sum(counts) <= _HEADED or sum(map(bool, counts)) > 1


def test_overview_shows_each_command_once(capsys):
  assert entry.main([]) == 0
  text = capsys.readouterr().out
  assert max(map(len, text.splitlines())) <= 80
  listed = re.findall(r'^  (\w+)  +\S', text, re.M)
  assert sorted(listed) == sorted(entry.COMMANDS)


def test_help_of_a_subcommand(capsys):
  with pytest.raises(SystemExit):
    entry.main(['help', 'config', 'show'])
  assert capsys.readouterr().out.startswith('usage: craft config show')


def test_settings_are_mentioned_where_they_are_taken():
  for name, page in _PAGES.items():
    takes = any(action.dest == 'config' for action in page._actions)
    assert ('--config.SECTION' in page.format_help()) == takes, name


@pytest.mark.parametrize(
  'argv, words',
  [
    (['config'], 'craft config needs a command: show, '),
    (['config', 'shwo'], "did you mean 'show'?"),
    (['compare'], "did you mean 'craft runs compare'?"),
    (['show'], "'craft runs show' or 'craft config show'?"),
    (['eval', '--workdir=w', '--splt=test'], "did you mean '--split'?"),
    (['eval', '--workdir=w', '--split=tset'], "did you mean 'test'?"),
    (['help', 'trian'], "did you mean 'train'?"),
  ],
)
def test_the_nearest_is_suggested(argv, words):
  with pytest.raises(UserError, match=re.escape(words)):
    name, *rest = argv[1:] if argv[0] == 'help' else argv
    entry.parse(name, rest)


def test_a_docstring_becomes_a_page():
  page = parser_lib.Parser(
    'craft x',
    description='Does.\n\nMore.\n\nexamples:\n  craft x\n  craft x y\n',
  )
  page.add_argument('--n', type=int, default=3, help='how many')
  page.add_argument('--m', help='which')
  page.add_argument('--on', action='store_true', help='whether')
  page.add_argument('--must', required=True, help='what')
  text = page.format_help()
  assert text.startswith('usage: craft x --must MUST [flags]\n\nDoes.\n')
  assert 'how many (default: 3)' in text and 'which (default: none)' in text
  assert text.endswith('examples:\n  craft x\n  craft x y\n')
  assert text.count('default') == 2


# These take minutes, ask for an answer, need more runs than there are, or do
# not end: a server is started by tests/test_docs.py and tests/serve.
_LONG = re.compile(
  r'train\b|serve\b|profile\b|bench \w|scaling\b|.*--interactive|runs .*--yes'
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with the runs and files that the examples name."""
  folder = tmp_path_factory.mktemp('examples')
  lines = ''.join(f'def f{i}(x):\n  return x * {i}\n\n' for i in range(400))
  for name in ('my.txt', 'notes.txt', 'a.txt', 'b.txt'):
    (folder / name).write_text(lines)
  (folder / 'piped.txt').write_text('def ')
  (folder / 'prompts.txt').write_text('def \nreturn\n')
  (folder / 'a.tsv').write_text('prompt\tcompletion\ndef f1\t(x):\n')
  (folder / 'many.jsonl').write_text('{"prompt": "def ", "max_chars": 5}\n')
  flags = [
    '--config=text', f'--config.data.path={folder}/my.txt',
    '--config.model.context=64', '--config.model.width=16',
    '--config.model.depth=1', '--config.model.num_heads=2',
    '--config.train.batch_size=4', '--config.train.steps=4',
    '--config.optim.warmup_steps=1', '--config.log.sample_chars=4',
    '--config.data.test_fraction=0.1', '--config.eval.batch_size=4',
    '--quiet',
  ]  # fmt: skip
  for name in ('first', 'second'):
    assert entry.main(['train', *flags, f'--workdir={folder}/runs/{name}']) == 0
  return folder


@pytest.mark.slow
def test_the_examples_run(place, monkeypatch, capsys):
  """Of every command, in one folder, as its page has them."""
  monkeypatch.chdir(place)
  ran, wrong = 0, []
  for page in _PAGES.values():
    for words in examples(page):
      line = ' '.join(words)
      if _LONG.match(line):
        continue
      if words[0] == 'sweep':  # planned and checked, not trained
        words = [*words, '--dry-run']
      with open('piped.txt') as piped:  # for those that read one
        monkeypatch.setattr('sys.stdin', piped)
        code = entry.main(words)
      if code:
        wrong.append(f'craft {line}: {capsys.readouterr().err}')
      ran += 1
  assert not wrong
  assert ran > 40
