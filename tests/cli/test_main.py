"""The entry: commands, help, and how mistakes end."""

import re
import types

import pytest

from craft_jax import main as entry
from craft_jax.errors import RunFailed


@pytest.fixture
def craft(capsys, monkeypatch, tmp_path):
  """`craft(*argv) -> (code, stdout, stderr)` in an empty folder."""
  monkeypatch.chdir(tmp_path)

  def run(*argv):
    code = entry.main(argv)
    out, err = capsys.readouterr()
    return code, out, err

  return run


@pytest.mark.parametrize('argv', [(), ('help',), ('--help',), ('-h',)])
def test_overview_lists_every_command(craft, argv):
  code, out, _ = craft(*argv)
  assert code == 0
  for name, load in entry.COMMANDS.items():
    assert re.search(rf'^  {name} +{re.escape(load().SUMMARY)}$', out, re.M)


@pytest.mark.parametrize('name', entry.COMMANDS)
@pytest.mark.parametrize('form', ['--help', 'help'])
def test_help_of_a_command(craft, capsys, name, form):
  with pytest.raises(SystemExit) as e:
    craft(*((name, '--help') if form == '--help' else ('help', name)))
  assert e.value.code == 0
  out = capsys.readouterr().out
  assert f'craft {name}' in out and len(out.splitlines()) > 5


def test_version(craft):
  assert craft('--version')[1].startswith('craft ')


MISTAKES = [
  (['trian'], "unknown command 'trian', did you mean 'train'?"),
  (['--cofnig=base'], "unknown flag '--cofnig=base', did you mean '--config'?"),
  (['train', '--config'], 'expected one argument'),
  (['data', 'stats', '--confg=x'], "did you mean '--config'?"),
  (['--config=shakespeare:foo'], 'has no variants'),
  (['--config.seed=4294967296'], 'must be at most 4294967295'),
  (['--config=bse'], "no config file 'bse', did you mean 'base'?"),
  (['--config=base:smal'], "unknown variant 'smal', did you mean 'small'?"),
  (['--config.model.widht=3'], "did you mean 'model.width'?"),
  (['--config.widht=3'], "did you mean 'model.width'?"),
  (['--config.model.width'], 'needs a value'),
  (['--config.model.width=wide'], 'must be of type int'),
  (['--config.model.width=1.5'], 'must be of type int'),
  (['--config.model.tied=maybe'], 'must be true or false'),
  (['--config.model.mlp=gleu'], "did you mean 'gelu'?"),
  (['--config.train.batch_size=0'], 'must be at least 1'),
  (['--config.train.steps=-1'], 'must be at least 1'),
  (['--config.model.dropout=1.0'], 'must be at most 0.95'),
  (['--config.optim.learning_rate=nan'], 'must be finite'),
  (
    ['--config.model.width=100', '--config.model.num_heads=3'],
    'model.width=100 is not divisible by model.num_heads=3',
  ),
  (
    ['--config.model.num_kv_heads=3'],
    'model.num_heads=4 is not divisible by model.num_kv_heads=3',
  ),
  (['--config.model.num_heads=128'], 'must be even and positive'),
  (['--config.model.window=9999'], 'is longer than model.context'),
  (['--config.model.local_per_global=1'], 'needs model.window'),
  (
    ['--config.model.local_per_global=4', '--config.model.window=8'],
    'leaves no global layer',
  ),
  (['--config.model.unroll=3'], 'is not divisible by model.unroll=3'),
  (
    ['--config.model.position=sinusoidal', '--config.model.width=5',
     '--config.model.num_heads=1'],
    'needs an even model.width',
  ),
  (['--config.train.accumulate=7'], 'not divisible by train.accumulate=7'),
  (
    ['--config.train.steps=10', '--config.optim.warmup_steps=10'],
    'must be below train.steps=10',
  ),
  (['--config.optim.decay_steps=10'], 'needs optim.schedule=wsd'),
  (
    ['--config.optim.schedule=wsd', '--config.optim.decay_steps=99999'],
    'exceed train.steps',
  ),
  (['--stop-at-step=99999'], 'is past train.steps'),
  (['--stop-at-step=x'], 'must be of type int'),
  (['--config.train.extended=x'], 'is not STEP:STEPS'),
  (['--config.eval.stride=9999'], 'is longer than model.context'),
  (['--config=text'], 'needs data.path'),
  (['--config=text', '--config.data.path=none.txt'], 'none.txt'),
  (['--config=tfds'], 'needs data.tfds_name'),
  (['--config=tfds:no_such_set'], 'no_such_set'),
  (['--config.data.split=given'], 'needs data.valid_path'),
  (['--config.data.valid_path=a.txt'], 'needs data.split=given'),
  (['--config.data.valid_fraction=0'], 'must be above 0'),
  (
    ['--config.data.valid_fraction=0.6', '--config.data.test_fraction=0.6'],
    'must be below 1',
  ),
  (['--config.text.max_chars=10'], 'needs text.vocabulary=char'),
  (
    ['--config.text.max_chars=10', '--config.text.vocabulary=char'],
    'text.unknown=replace',
  ),
  (['--config.text.clean=lowr'], 'lower'),
  (['--config.mesh.data=0'], 'mesh.data=0'),
  (['--config.mesh.data=-1', '--config.mesh.fsdp=-1'], 'only one of'),
  (['--config.mesh.data=64'], 'devices'),
  (['--config.model.context=100000000'], 'train split'),
  (
    ['--config.train.steps=100000000', '--config.train.batch_size=100'],
    'lower one of them',
  ),
  (['eval'], 'required: --workdir'),
  (['eval', '--workdir=nowhere'], 'no run directory nowhere'),
  (['eval', '--workdir=w', '--config.seed=1'], 'takes no settings'),
  (['eval', '--workdir=w', '--split=dev'], 'invalid choice'),
  (['score', '--workdir=w', '--txt=a'], "did you mean '--text'?"),
  (['score', '--workdir=nowhere', '--text=a'], 'no run directory nowhere'),
  (['sample', '--workdir=nowhere'], 'no run directory nowhere'),
  (['inspect', '--workdir=nowhere'], 'no run directory nowhere'),
  (['data', 'stats', '--config=text', '--config.data.path=.'], 'text'),
  (['config', 'show', '--config.seed=x'], 'must be of type int'),
]  # fmt: skip


@pytest.mark.parametrize(
  'argv, words', MISTAKES, ids=lambda v: ' '.join(v)[:60]
)
def test_mistakes_end_in_one_line(craft, tmp_path, argv, words):
  code, out, err = craft(*argv)
  assert code == 2, (out, err)
  assert words in err
  assert err.startswith('craft: ') and err.count('\n') == 1
  assert 'Traceback' not in err
  # Nothing half-written is left behind.
  assert list(tmp_path.iterdir()) == []


FILES = [
  ('x = 1', 'does not define get_config'),
  ('def get_config(:', 'invalid syntax'),
  ('import nonsense_module', 'nonsense_module'),
  (
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n  c.model.widht = 3\n'
    '  return c',
    "unknown setting 'widht', did you mean 'model.width'?",
  ),
  (
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n  c.modle.width = 3\n'
    '  return c',
    'modle',
  ),
  (
    'from craft_jax.config.load import default_config\n'
    "def get_config():\n  c = default_config()\n  c.model.width = 'wide'\n"
    '  return c',
    'wide',
  ),
  (
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n  c.train.batch_size = 0\n'
    '  return c',
    'train.batch_size=0 must be at least 1',
  ),
  ('def get_config():\n  return 3', 'mine.py'),
  ('def get_config():\n  return 1 / 0', 'mine.py, line 2: ZeroDivisionError'),
  (
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n  c.seed = 3',
    'mine.py: get_config returns nothing; end it with `return config`',
  ),
  ('def get_config():\n  return [3]', 'get_config returns list, not a config'),
  ('get_config = 3', 'does not define get_config'),
  ('def get_config(variant):\n  return {}', "let it take (variant='')"),
  ('def get_config(*, size):\n  return {}', "let it take (variant='')"),
  ('import sys\n\nsys.exit(4)', 'mine.py, line 3: SystemExit: 4'),
  (
    'def get_config():\n  import re\n  return re.match("a", "b").group()',
    "mine.py, line 3: AttributeError: 'NoneType' object has no attribute "
    "'group'",
  ),
  (
    'def get_config():\n  return object().widht',
    "mine.py, line 2: AttributeError: 'object' object has no attribute 'widht'",
  ),
  (
    'def get_config():\n  return {}["model"]',
    "mine.py, line 2: KeyError: 'model'",
  ),
  (  # the user's own config, and no setting of ours
    'from ml_collections import ConfigDict\n'
    'def get_config():\n  mine = ConfigDict({"width": 3}).lock()\n'
    '  return mine.widht',
    'mine.py, line 4: AttributeError: ',
  ),
  (
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n  return c["modle"]',
    "mine.py, line 4: unknown setting 'modle'",
  ),
  (
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n  c.update({"sede": 3})\n'
    '  return c',
    "mine.py, line 4: unknown setting 'sede', did you mean 'seed'?",
  ),
  (
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n'
    '  c.model = {"widht": 3}\n  return c',
    "mine.py:4: unknown setting 'model.widht', did you mean 'model.width'?",
  ),
  ('{"seed": 3, "seed', 'mine.py: it is not valid JSON'),
  ('{"sede": 3}', "mine.py: unknown setting 'sede', did you mean 'seed'?"),
]


@pytest.mark.parametrize('source, words', FILES, ids=lambda v: v[-30:])
def test_mistakes_in_a_config_file(craft, tmp_path, source, words):
  (tmp_path / 'mine.py').write_text(source)
  code, _, err = craft('--config=mine.py')
  assert code == 2
  assert words in err and err.startswith('craft: ') and err.count('\n') == 1


def test_a_workdir_of_something_else(craft, tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').write_text('keep')
  code, _, err = craft('--config=toy', '--workdir=mine')
  assert code == 2 and 'thesis.tex' in err and err.count('\n') == 1
  assert [p.name for p in (tmp_path / 'mine').iterdir()] == ['thesis.tex']


def test_override_forms(monkeypatch):
  _, args = entry.parse(
    'train', ['--config', 'toy', '--config.seed', '3', '--config.model.tied=1']
  )
  assert args.overrides == ['seed=3', 'model.tied=1']
  assert args.config == 'toy'


@pytest.fixture
def failing(monkeypatch):
  """`failing(error)` makes `craft train` raise it."""

  def install(error):
    def fail(args):
      raise error

    command = types.ModuleType('command')
    command.add_arguments = lambda parser: None
    command.run = fail
    monkeypatch.setitem(entry.COMMANDS, 'train', lambda: command)

  return install


def test_failed_runs_have_their_own_code(failing, capsys):
  failing(RunFailed('it\nburst', 75))
  assert entry.main(['train']) == 75
  assert capsys.readouterr().err == 'craft: it burst\n'


@pytest.mark.parametrize(
  'error, words',
  [
    ('RESOURCE_EXHAUSTED: Out of memory', 'lower train.batch_size'),
    ('UNIMPLEMENTED: Unsupported element type for DotThunk', 'float32'),
  ],
)
def test_device_errors_have_a_remedy(failing, capsys, error, words):
  failing(RuntimeError(error))
  assert entry.main(['train']) == 2
  assert words in capsys.readouterr().err


def test_bugs_keep_their_traceback(failing):
  failing(RuntimeError('a bug'))
  with pytest.raises(RuntimeError, match='a bug'):
    entry.main(['train'])
