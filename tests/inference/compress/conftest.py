"""A model that was really trained, on a text of its own."""

import pytest

from craft_jax.config import load as config_lib
from craft_jax.inference.load import load_model
from craft_jax.runtime.signals import Interrupts
from craft_jax.train.run import train

TEXT = ''.join(f'{i} squared is {i * i}; ' for i in range(2000))


def _trained(folder, *overrides):
  (folder / 'squares.txt').write_text(TEXT)
  cfg = config_lib.load_config(
    'text',
    [
      f'data.path={folder / "squares.txt"}',
      f'data.cache_dir={folder / "cache"}',
      'text.vocabulary=char',
      'model.context=32',
      'model.width=32',
      'model.depth=1',
      'model.num_heads=2',
      'model.precision=float32',
      'train.steps=150',
      'train.batch_size=8',
      'optim.warmup_steps=2',
      'eval.batch_size=16',
      'log.sample_chars=0',
      *overrides,
    ],
  )
  with Interrupts() as interrupts:
    train(cfg, str(folder / 'run'), quiet=True, interrupts=interrupts)
  return str(folder / 'run')


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  """The run directory of a char model."""
  return _trained(tmp_path_factory.mktemp('compress'))


@pytest.fixture(scope='session')
def trained(workdir):
  """Its model."""
  return load_model(workdir)


@pytest.fixture(scope='session')
def squares():
  """20 kB of a text as the model was trained on."""
  return TEXT[-20000:].encode()
