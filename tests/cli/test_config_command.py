"""`craft config show|diff|new|docs`; `check` is in test_config_check.py."""

import dataclasses
import json
import pathlib
import re

import pytest

from craft_jax import main
from craft_jax.config import describe, meaning, shipped
from craft_jax.config import load as config_lib

_FILE = """
from craft_jax.config.load import default_config

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


def _row(text: str, name: str) -> tuple[str, str, str]:
  """The mark, the value and the origin of a setting, as shown."""
  (found,) = re.findall(rf'^([ *]) {name} += (.*\S)  +(\S.*)$', text, re.M)
  mark, value, origin = found
  return mark, value.strip(), origin


def test_show_says_where_each_value_came_from(page, capsys):
  flag = '--config.optim.name=sgd'
  assert main.main(['config', 'show', f'--config={page}', flag]) == 0
  out = capsys.readouterr().out
  assert _row(out, 'model.width') == ('*', '96', f'{page}:6')
  assert _row(out, 'text.clean') == ('*', "('nfc', 'newlines')", f'{page}:8')
  assert _row(out, 'optim.name') == ('*', "'sgd'", 'flag')
  assert _row(out, 'seed') == (' ', '0', 'default')
  assert len(out.splitlines()) == len(list(config_lib.settings()))


def test_show_finds_lines_in_functions_and_shipped_files(tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from craft_jax.config.load import default_config\n'
    'from craft_jax.config.presets import set_size\n'
    'def wider(config):\n'
    '  config.model.depth = 4\n'  # its default, yet set
    "  config.update({'train': {'steps': 77}})\n"
    'def get_config():\n'
    '  config = default_config()\n'
    "  set_size(config, 'nano')\n"
    '  wider(config)\n'
    '  return config\n'
  )
  assert main.main(['config', 'show', f'--config={path}', '--set']) == 0
  out = capsys.readouterr().out
  assert _row(out, 'model.width')[2] == f'{path}:8'
  assert _row(out, 'model.depth') == (' ', '4', f'{path}:4')
  assert _row(out, 'train.steps') == ('*', '77', f'{path}:5')
  assert len(out.splitlines()) == 5
  assert main.main(['config', 'show', '--config=toy', '--set']) == 0
  source = (config_lib.config_dir() / 'toy.py').read_text().splitlines()
  origin = _row(capsys.readouterr().out, 'model.context')[2]
  file, line = origin.split(':')
  assert file == 'configs/toy.py'
  assert source[int(line) - 1] == '  config.model.context = 64'


@pytest.fixture
def run_dir(page, tmp_path, monkeypatch):
  """A run directory as `craft train` begins one."""
  from craft_jax.runs import run_dir as run_dir_lib

  flags = ['--config.seed=3', '--stop-at-step', '5']
  argv = ['craft', 'train', f'--config={page}:wide', *flags]
  monkeypatch.setattr('sys.argv', argv)
  overrides = ['seed=3', 'train.stop_at_step=5']
  cfg = config_lib.load_config(f'{page}:wide', overrides)
  model = dataclasses.replace(cfg.model, precision='float32')  # what auto was
  cfg = dataclasses.replace(cfg, model=model)
  run_dir_lib.open_run(tmp_path / 'run', cfg)
  return tmp_path / 'run'


def test_show_of_a_run(run_dir, page, monkeypatch, capsys):
  monkeypatch.chdir(run_dir.parent)
  for spec in ('run', 'run/config.json'):
    assert main.main(['config', 'show', spec]) == 0
    out = capsys.readouterr().out
    assert _row(out, 'seed') == ('*', '3', 'flag')
    assert _row(out, 'train.stop_at_step') == ('*', '5', 'flag')
    assert _row(out, 'model.width') == ('*', '384', 'mine.py:6')
    assert _row(out, 'model.precision') == ('*', "'float32'", 'hardware')
    assert _row(out, 'train.steps') == (' ', '1000', 'default')


def test_show_of_a_run_whose_file_has_changed(run_dir, page, capsys):
  path = pathlib.Path(page)
  path.write_text(path.read_text().replace('384', '512'))
  assert main.main(['config', 'show', str(run_dir)]) == 0
  out = capsys.readouterr().out
  assert _row(out, 'model.width') == ('*', '384', f'{page}:wide then')
  path.unlink()
  assert main.main(['config', 'show', str(run_dir)]) == 0
  out = capsys.readouterr().out
  assert _row(out, 'data.valid_fraction')[2] == f'{page}:wide then'
  (run_dir / 'metadata.json').unlink()
  assert main.main(['config', 'show', str(run_dir)]) == 0
  assert _row(capsys.readouterr().out, 'seed') == ('*', '3', 'config.json')


def test_show_json_ends_in_one_object(page, capsys):
  assert main.main(['config', 'show', f'--config={page}:wide', '--json']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['changed'] == {
    'model.width': 384,
    'data.valid_fraction': 0.25,
    'text.clean': ['nfc', 'newlines'],
  }
  assert found['origin']['model.width'] == f'{page}:6'
  assert found['origin'].keys() == {name for name, *_ in config_lib.settings()}
  assert config_lib.from_json(
    json.dumps(found['config'])
  ) == config_lib.load_config(page + ':wide')


def test_diff_names_both_values(page, capsys):
  assert main.main(['config', 'diff', page, page + ':wide', '--json']) == 0
  text, last = capsys.readouterr().out.splitlines()
  assert text == 'model.width: 96 -> 384'
  assert json.loads(last) == {'model.width': [96, 384]}


def test_diff_reads_what_a_run_saved(page, tmp_path, capsys):
  saved = tmp_path / 'config.json'
  saved.write_text(config_lib.to_json(config_lib.load_config(page)))
  assert main.main(['config', 'diff', str(saved), page]) == 0
  assert capsys.readouterr().out == 'no differences\n'


def test_new_writes_a_file_that_loads_the_same(page, tmp_path, capsys):
  path = tmp_path / 'new.py'
  flags = ['--from', page + ':wide', '--config.train.batch_size=8']
  assert main.main(['config', 'new', str(path), *flags]) == 0
  expected = config_lib.load_config(page + ':wide', ['train.batch_size=8'])
  assert config_lib.load_config(str(path)) == expected
  text = path.read_text()
  assert max(map(len, text.splitlines()[8:])) <= 80
  for name, *_ in config_lib.settings():
    assert f'config.{name} = ' in text
  assert str(path) in capsys.readouterr().out


_SHIPPED = [spec for path in shipped.paths() for spec in shipped.specs(path)]


@pytest.mark.parametrize('spec', _SHIPPED)
def test_new_from_each_shipped_config(spec, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main.main(['config', 'new', 'my.py', f'--from={spec}']) == 0
  said = capsys.readouterr().out
  written, origin = config_lib.resolve('my.py'), config_lib.resolve(spec)
  assert written.cfg == origin.cfg
  assert written.problems == origin.problems
  # What the user has to add is said.
  assert said.count('\nfirst: ') == len(origin.problems)


@pytest.mark.slow
def test_a_new_file_trains(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('my.txt').write_text('a fox, a dog, and a hen. ' * 200)
  assert main.main(['config', 'new', 'my.py', '--from=text:nano']) == 0
  text = pathlib.Path('my.py').read_text()
  for name, value in {
    'data.path': 'my.txt', 'model.context': 16, 'model.depth': 1,
    'model.width': 16, 'model.num_heads': 2, 'train.steps': 4,
    'train.batch_size': 2, 'eval.batch_size': 2, 'log.sample_chars': 5,
    'optim.warmup_steps': 1,
  }.items():  # fmt: skip
    text, edits = re.subn(
      rf'^  (# )?config\.{name} = .*$', f'  config.{name} = {value!r}', text,
      flags=re.MULTILINE,
    )  # fmt: skip
    assert edits == 1
  pathlib.Path('my.py').write_text(text)
  argv = ['train', '--config=my.py', '--workdir=run', '--quiet']
  assert main.main(argv) == 0
  assert 'step 4 of 4 is saved in run' in capsys.readouterr().out


def test_every_commented_line_is_the_default(tmp_path):
  """Uncommenting all of a new file changes nothing."""
  path = tmp_path / 'all.py'
  text = describe.config_file(config_lib.Config(), 'defaults', 'all.py')
  path.write_text(text.replace('# config.', 'config.'))
  assert config_lib.load_config(str(path)) == config_lib.Config()


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
    (['show', 'nowhere'], 'nowhere'),
    (['show', '.'], 'not a run directory'),
    (['show', '.', '--config=toy'], 'remove --config'),
    (['docs', 'optim.warmup_stesp'], "did you mean 'optim.warmup_steps'?"),
    (['docs', 'warmup_stesp'], "did you mean 'optim.warmup_steps'?"),
    (['docs', 'seed', '--write=page.md'], 'remove KEY'),
    (['docs', '--json'], 'needs a KEY'),
  ],
)
def test_mistakes_are_one_line(argv, word, page, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  if argv[0] == 'show' and argv[1].startswith('--config.'):
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
  for name, _, field in config_lib.settings():
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


def test_a_meaning_says_everything(capsys):
  assert main.main(['config', 'docs', 'optim.warmup_steps', '--json']) == 0
  text, last = capsys.readouterr().out.rstrip().rsplit('\n', 1)
  assert text.startswith('optim.warmup_steps\n  Steps of the linear warm-up.\n')
  assert 'unit     steps' in text and 'default  50' in text
  assert 'optim.warmup_steps must be below train.steps' in text
  found = json.loads(last)
  assert {'train.steps', 'optim.decay_steps'} <= set(found['related'])
  assert found['shipped']['toy'] == 10


def test_meanings_follow_the_checks():
  """What a check relates is told, without a list of its own."""
  width = meaning.meaning('model.width')
  assert 'model.width is not divisible by model.num_heads' in width.refused
  assert 'model.rope_fraction' in width.related
  assert 'model.num_heads' in meaning.meaning('model.num_kv_heads').related
  assert meaning.meaning('data.tfds_name').refused == (
    'data.source=tfds needs data.tfds_name',
  )


def test_every_setting_has_a_meaning():
  names = {name for name, *_ in config_lib.settings()}
  for name, kind, field in config_lib.settings():
    one = meaning.meaning(name)
    assert set(one.related) <= names - {name}
    assert set(field.metadata['see']) <= names
    # Both ways.
    assert all(name in meaning.meaning(n).related for n in one.related), name
    lines = meaning.lines(one)
    assert max(map(len, lines)) <= 80
    assert '\0' not in ''.join(lines) and one.doc.split()[0] in lines[1]
    assert not one.unit or kind in (int, float)


@pytest.mark.parametrize(
  'key, names',
  [
    ('config.model.width', ['model.width']),
    ('width', ['model.width']),
    ('learning_rate', ['optim.learning_rate']),
    ('rope', ['model.rope_fraction', 'model.rope_base']),
    ('every', ['eval.every', 'checkpoint.every', 'log.every']),
    ('checkpoint', ['checkpoint.every', 'checkpoint.keep', 'checkpoint.best']),
    ('checkpoint.', ['checkpoint.every', 'checkpoint.keep', 'checkpoint.best']),
  ],
)
def test_a_key_may_be_a_part(key, names, capsys):
  assert meaning.find(key) == names
  assert main.main(['config', 'docs', key]) == 0
  out = capsys.readouterr().out
  assert all(name in out for name in names)


def test_the_line_of_a_value(tmp_path):
  """Whatever a config file calls on the way to it."""
  path = tmp_path / 'mine.py'
  path.write_text(
    '"""Doc."""\n'
    'from __future__ import annotations\n'
    'import dataclasses\n'
    'from craft_jax.config.load import default_config\n'
    '@dataclasses.dataclass\n'
    'class A:\n'
    '  x: int = 3\n'
    'def more(n):\n'
    '  n += 1\n'
    '  return n\n'
    'def optim(c):\n'
    '  c.optim.warmup_steps = more(2)\n'
    'def get_config():\n'
    '  c = default_config()\n'
    '  c.train.steps = more(\n'
    '    100)\n'
    '  optim(c)\n'
    '  if A().x == 3:\n'
    '    c.seed = more(3)\n'
    '  for k in ["width", "context"]:\n'
    '    c.model[k] = 32\n'
    '  with c.unlocked():\n'
    '    c.model.num_heads = 2\n'
    '  try:\n'
    '    c.update(dict(eval=dict(every=more(1))))\n'
    '  finally:\n'
    '    c.log.every = 1\n'
    '  return c\n'
  )
  found = config_lib.resolve(str(path)).origins
  lines = {
    'optim.warmup_steps': 12, 'train.steps': 15, 'seed': 19,
    'model.width': 21, 'model.context': 21, 'model.num_heads': 23,
    'eval.every': 25, 'log.every': 27,
  }  # fmt: skip
  assert {
    name: where for name, where in found.items() if where != 'default'
  } == {name: f'{path}:{line}' for name, line in lines.items()}
