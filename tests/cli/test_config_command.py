"""`craft config show|diff|new|docs`."""

import json
import pathlib

import pytest

from craft_jax import config, describe, main

_FILE = """
from craft_jax.config import default_config

def get_config(variant=''):
  config = default_config()
  config.model.width = 384 if variant == 'wide' else 96
  config.data.valid_fraction = 0.25
  config.text.clean = ('nfc', 'newlines')
  return config
"""


@pytest.fixture
def page(tmp_path: pathlib.Path) -> str:
  path = tmp_path / 'mine.py'
  path.write_text(_FILE)
  return str(path)


def _value(text: str, name: str) -> str:
  (line,) = (x for x in text.splitlines() if x[2:].startswith(name + ' '))
  return f'{line[0]}{line.partition("=")[2]}'


def test_show_marks_what_differs(page, capsys):
  flag = '--config.optim.name=sgd'
  assert main.main(['config', 'show', f'--config={page}', flag]) == 0
  out = capsys.readouterr().out
  assert _value(out, 'model.width') == '* 96'
  assert _value(out, 'optim.name') == "* 'sgd'"
  assert _value(out, 'seed') == '  0'
  assert len(out.splitlines()) == len(list(config.settings()))


def test_show_json_ends_in_one_object(page, capsys):
  assert main.main(['config', 'show', f'--config={page}:wide', '--json']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['changed'] == {
    'model.width': 384,
    'data.valid_fraction': 0.25,
    'text.clean': ['nfc', 'newlines'],
  }
  assert config.from_json(json.dumps(found['config'])) == config.load_config(
    page + ':wide'
  )


def test_diff_names_both_values(page, capsys):
  assert main.main(['config', 'diff', page, page + ':wide', '--json']) == 0
  text, last = capsys.readouterr().out.splitlines()
  assert text == 'model.width: 96 -> 384'
  assert json.loads(last) == {'model.width': [96, 384]}


def test_diff_reads_what_a_run_saved(page, tmp_path, capsys):
  saved = tmp_path / 'config.json'
  saved.write_text(config.to_json(config.load_config(page)))
  assert main.main(['config', 'diff', str(saved), page]) == 0
  assert capsys.readouterr().out == 'no differences\n'


def test_new_writes_a_file_that_loads_the_same(page, tmp_path, capsys):
  path = tmp_path / 'new.py'
  flags = ['--from', page + ':wide', '--config.train.batch_size=8']
  assert main.main(['config', 'new', str(path), *flags]) == 0
  expected = config.load_config(page + ':wide', ['train.batch_size=8'])
  assert config.load_config(str(path)) == expected
  text = path.read_text()
  assert max(map(len, text.splitlines()[8:])) <= 80
  for name, *_ in config.settings():
    assert f'config.{name} = ' in text
  assert str(path) in capsys.readouterr().out


def test_every_commented_line_is_the_default(tmp_path):
  """Uncommenting all of a new file changes nothing."""
  path = tmp_path / 'all.py'
  text = describe.config_file(config.Config(), 'defaults', 'all.py')
  path.write_text(text.replace('# config.', 'config.'))
  assert config.load_config(str(path)) == config.Config()


def test_new_refuses_to_overwrite(page, capsys):
  before = pathlib.Path(page).read_bytes()
  assert main.main(['config', 'new', page]) == 2
  error = capsys.readouterr().err
  assert 'exists' in error and error.count('\n') == 1
  assert pathlib.Path(page).read_bytes() == before


@pytest.mark.parametrize(
  'argv, word',
  [
    (['show', '--config=nowhere.py'], 'nowhere'),
    (['show', '--config.model.widht=3'], 'model.width'),
    (['show', '--config.model.width=97'], 'num_heads'),
    (['new', 'my.txt'], '.py'),
    (['new', 'missing/folder/my.py'], 'missing/folder'),
    (['diff', 'missing.json', 'missing.json'], 'missing.json'),
    (['docs', '--write=missing.md'], 'missing.md'),
    (['shwo'], 'show'),
  ],
)
def test_mistakes_are_one_line(argv, word, page, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  if argv[0] == 'show' and not argv[1].startswith('--config='):
    argv = [*argv, f'--config={page}']
  if argv[0] == 'new':
    argv = [*argv, f'--from={page}']
  assert main.main(['config', *argv]) == 2
  error = capsys.readouterr().err
  assert word in error and error.count('\n') == 1
  assert [p.name for p in tmp_path.iterdir()] == ['mine.py']


@pytest.mark.parametrize('text', ['', '[]', '{"model": {"widht": 3}}', '\x00'])
def test_a_broken_saved_config_is_one_line(text, tmp_path, capsys):
  path = tmp_path / 'config.json'
  path.write_text(text)
  assert main.main(['config', 'diff', str(path), str(path)]) == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_docs_name_every_setting(capsys):
  assert main.main(['config', 'docs']) == 0
  text = capsys.readouterr().out
  for name, _, field in config.settings():
    assert f'| `{name.rpartition(".")[2]}` | `{field.default!r}` |' in text
    assert field.metadata['doc'] in text


def test_docs_refresh_only_between_the_markers(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text(f'before\n{describe.BEGIN}\nstale\n{describe.END}\nafter\n')
  assert main.main(['config', 'docs', f'--write={page}']) == 0
  text = page.read_text()
  assert text.startswith('before\n') and text.endswith('\nafter\n')
  assert 'stale' not in text and describe.markdown() in text


def test_docs_need_the_markers(tmp_path, capsys):
  page = tmp_path / 'page.md'
  page.write_text(describe.BEGIN)
  assert main.main(['config', 'docs', f'--write={page}']) == 2
  assert describe.END in capsys.readouterr().err
  assert page.read_text() == describe.BEGIN
