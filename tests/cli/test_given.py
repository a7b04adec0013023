"""What a user gives: paths with ~, values that begin with -, NumPy numbers."""

import dataclasses
import json
import shlex

import numpy as np
import pytest

import craft_jax
from craft_jax.cli import request_file, saved_config, train
from craft_jax.config import describe
from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config, Train
from craft_jax.errors import UserError
from craft_jax.inference.sampling.request import Request
from craft_jax.main import COMMANDS, main, open_command, parse
from craft_jax.runs import checkpoint
from craft_jax.runtime import compilation_cache


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  return tmp_path


@pytest.mark.parametrize(
  'words',
  [
    'train --workdir=~/x',
    'train --config=~/x',
    'sample --workdir=~/x',
    'sample --workdir=y --prompt-file ~/x',
    'sample --workdir=y --output=~/x',
    'score --workdir=y --file=~/x',
    'eval --workdir=y --path=~/x',
    'runs list ~/x',
    'config diff ~/x y',
    'config show ~/x',
    'sweep --workdir=~/x',
    'compress ~/x --workdir=y',
  ],
)
def test_a_home_folder_is_expanded(home, words):
  name, *rest = words.split()
  _, args = parse(name, rest)
  given = [
    v
    for value in vars(args).values()
    for v in (value if isinstance(value, list) else [value])
  ]
  assert f'{home}/x' in given
  assert not any(isinstance(v, str) and '~' in v for v in given)


def test_texts_keep_their_tilde(home):
  _, args = parse('sample', ['--workdir=y', '--prompt=~/x'])
  assert args.prompt == '~/x'


def test_every_file_and_folder_is_a_path():
  for name in COMMANDS:
    for page in open_command(name)[1].pages():
      for action in page._actions:
        if action.option_strings[-1:] in (['--workdir'], ['--output']):
          assert page._get_value(action, '~')[0] == '/', (name, action)


def test_load_expands_too(home, byte_run):
  (home / 'run').symlink_to(byte_run)
  assert craft_jax.load('~/run').step == craft_jax.load(byte_run).step


def test_a_run_goes_on_with_its_own_settings(tmp_path):
  then = Config(train=Train(steps=700, stop_at_step=3))
  (tmp_path / 'config.json').write_text(config_lib.to_json(then))
  _, args = parse(
    'train', [f'--workdir={tmp_path}', '--config.train.steps=900']
  )
  wanted = Config(train=Train(steps=900))
  assert train._config(args) == wanted
  assert saved_config.changed(str(tmp_path), ['train.steps=900']) == wanted
  _, args = parse('train', ['--config=base', f'--workdir={tmp_path}'])
  assert train._config(args) == config_lib.load_config('base')


@pytest.mark.parametrize('flag', ['--prompt', '--output', '--regex'])
def test_a_value_that_begins_with_a_dash(capsys, flag):
  assert main(['sample', '--workdir=y', flag, '-x']) == 2
  assert f'{flag}=-x' in capsys.readouterr().err


def test_numbers_of_numpy():
  flat = {
    'train.steps': np.int64(5),
    'optim.learning_rate': np.float32(0.5),
    'train.deterministic': np.bool_(True),
    'data.path': np.str_('x'),
  }
  cfg = config_lib.unflatten(flat)
  assert (cfg.train.steps, cfg.optim.learning_rate) == (5, 0.5)
  assert cfg.train.deterministic is True
  assert type(cfg.data.path) is str
  json.dumps(dataclasses.asdict(cfg))
  request = Request(prompt='').changed(
    {'max_chars': np.int32(3), 'temperature': np.float64(0.5)}
  )
  assert (request.max_chars, request.temperature) == (3, 0.5)
  with pytest.raises(UserError):
    config_lib.unflatten({'train.steps': np.float64(1.5)})


def test_commands_to_paste(tmp_path):
  hostile = 'a b$(touch x)`touch x`"\'\\\n'
  summary = {
    'val_loss': 1.0, 'val_bpb': None, 'val_bpc': None, 'val_withheld': '',
    'train_seconds': 0, 'params': 1, 'precision': 'float32', 'devices': 1,
    'flops_per_token': 1, 'wall_seconds': 1, 'step': 1, 'prompt': hostile,
    'workdir': str(tmp_path / hostile),
  }  # fmt: skip
  told = train.report(summary, 1).partition('next:')[2]
  words = shlex.split(told)
  assert f'--prompt={hostile}' in words
  assert words.count(f'--workdir={tmp_path / hostile}') == 2


def test_a_new_config_with_a_strange_name_is_python():
  text = describe.config_file(Config(), 'base', 'a"""\\x$b.py')
  compile(text, 'x', 'exec')


def test_an_id_that_overflows(tmp_path):
  path = tmp_path / 'requests.jsonl'
  path.write_text('{"prompt": "a", "id": 1e400}')
  with pytest.raises(UserError, match=r'line 1: not JSON: .*too large'):
    request_file.read(str(path), Request(prompt=''))


def test_a_platform_that_is_not_installed(tmp_path):
  import os
  import subprocess
  import sys

  done = subprocess.run(
    [sys.executable, '-m', 'craft_jax.main', 'train', '--config=toy',
     f'--workdir={tmp_path / "run"}'],
    env=os.environ | {'JAX_PLATFORMS': 'cuda'},
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith('craft: JAX_PLATFORMS=cuda')
  assert 'Traceback' not in done.stderr


def test_a_loaded_model_uses_the_compile_cache(byte_run, monkeypatch):
  used = []
  monkeypatch.setattr(compilation_cache, 'use', used.append)
  craft_jax.load(byte_run)
  assert used


@pytest.mark.parametrize('name', ['train', 'valid', 'test'])
def test_a_split_of_one_token_is_not_mended_by_the_context(name):
  sizes = {'train': 10_000, 'valid': 100, 'test': 100} | {name: 1}
  with pytest.raises(UserError, match=f'^the {name} split has 1 tokens') as e:
    config_lib.check_corpus(Config(), sizes)
  assert 'context' not in str(e.value)


def test_discriminator_is_an_annotation():
  from craft_jax.constrain import schema

  assert 'discriminator' in schema._ANNOTATIONS


def test_a_warm_up_that_nobody_set_fits_the_run(tmp_path):
  for spec in ('base', 'toy'):
    found = config_lib.resolve(spec, ['train.steps=5'])
    assert not found.problems
    assert found.cfg.optim.warmup_steps == 0
    assert found.origins['optim.warmup_steps'].endswith('fit train.steps')
  wsd = ['train.steps=60', 'optim.schedule=wsd', 'optim.decay_steps=30']
  assert config_lib.load_config('base', wsd).optim.warmup_steps == 30
  with pytest.raises(UserError, match=r'optim\.warmup_steps=1'):
    config_lib.load_config('base', ['train.steps=5', 'optim.warmup_steps=10'])
  file = tmp_path / 'mine.py'
  file.write_text(
    'from craft_jax.config.load import default_config\n\ndef get_config():\n'
    '  config = default_config()\n  config.optim.warmup_steps = 20\n'
    '  return config\n'
  )
  with pytest.raises(UserError, match='warmup_steps=20 must be below'):
    config_lib.load_config(str(file), ['train.steps=5'])
  assert config_lib.load_config(str(file)).optim.warmup_steps == 20


@pytest.mark.parametrize(
  ('losses', 'told'),
  [((1.0, 1.5), True), ((1.0, 1.001), False), ((2.0, 1.0), False)],
)
def test_a_better_checkpoint_than_the_latest_is_told(
  byte_run, tmp_path, capsys, losses, told
):
  import jax.numpy as jnp

  meta = checkpoint.open_meta(byte_run, 3)
  state = {
    'step': jnp.int32(0), 'data_offset': jnp.int32(0), 'params': {},
    'opt_state': (), 'ema': None,
  }  # fmt: skip
  with checkpoint.Checkpointer(tmp_path) as saver:
    for step, loss in enumerate(losses, 1):
      figures = {'val_loss': loss}
      saver.save(
        state | {'step': jnp.int32(step), 'params': {'w': jnp.ones(2)}},
        dataclasses.replace(meta, step=step, metrics=figures),
      )
      saver.wait()
  capsys.readouterr()
  assert checkpoint.step_to_use(tmp_path, 'latest') == 2
  err = capsys.readouterr().err
  assert err == (
    'craft: step 1 is better than the latest, 2: val_loss 1.0000, not 1.5000 '
    '(50% more); --step=best takes it\n'
    if told
    else ''
  )
  checkpoint.step_to_use(tmp_path, '2')
  checkpoint.resolve_step(tmp_path)  # of a run that goes on
  assert not capsys.readouterr().err


def test_the_meaning_of_the_learning_rate_names_muons_own(capsys):
  assert main(['config', 'docs', 'optim.learning_rate']) == 0
  meaning = ' '.join(capsys.readouterr().out.split()).partition('default')[0]
  assert 'optim.muon_learning_rate' in meaning
