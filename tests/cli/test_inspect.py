"""`craft inspect` says what a checkpoint holds."""

import argparse
import json

import jax.numpy as jnp
import pytest

from craft_jax.cli import inspect
from craft_jax.config.settings import Config, Model
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.runs import checkpoint


def run(*flags):
  parser = argparse.ArgumentParser()
  inspect.add_arguments(parser)
  return inspect.run(parser.parse_args(flags))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  params = {'head': {'kernel': jnp.ones((192, 260))}}
  state = {
    'step': jnp.int32(1),
    'data_offset': jnp.int32(0),
    'params': params,
    'opt_state': ({'mu': params},),
    'ema': None,
  }
  cfg = Config(model=Model(width=6))
  with checkpoint.Checkpointer(path) as saver:
    for step, loss in ((1, 1.0), (2, float('nan'))):
      meta = checkpoint.Meta(
        step, cfg, Vocabulary.byte(), 'abc', {'val_loss': loss}, 'UNK occurred'
      )
      saver.save(state, meta)
  return str(path)


def test_human_view(workdir, capsys):
  assert run('--workdir', workdir) == 0
  out = capsys.readouterr().out
  assert 'step 2 of 1000' in out and 'steps kept  1, 2, best 1' in out
  assert '49,920' in out and 'byte, 260 tokens' in out
  assert 'model.width = 6' in out and 'model.depth' not in out
  assert 'head/kernel  float32   [192, 260]' in out
  assert 'no bits per byte: UNK occurred' in out
  assert 'val_loss = not finite' in out and 'ema_sha256        none' in out


def test_json_is_one_line_of_everything(workdir, capsys):
  assert run('--workdir', workdir, '--json', '--step=best') == 0
  out = capsys.readouterr().out
  (line,) = out.splitlines()
  result = json.loads(line)
  assert result['step'] == 1 and result['metrics'] == {'val_loss': 1.0}
  assert result['config']['model']['depth'] == 4
  assert result['params_sha256'] == checkpoint.tree_sha256(
    {'head': {'kernel': jnp.ones((192, 260))}}
  )
  assert result['vocabulary']['size'] == 260


def test_mistakes(tmp_path, workdir):
  with pytest.raises(UserError, match='holds no checkpoint'):
    run('--workdir', str(tmp_path))
  with pytest.raises(UserError, match='has no step 3'):
    run('--workdir', workdir, '--step=3')
