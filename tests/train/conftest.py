"""A toy run on a text of its own."""

import pytest

from craft_jax.config import load as config_lib

TEXT = ''.join(f'{i} squared is {i * i}; ' for i in range(600))


@pytest.fixture(scope='session')
def text_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'squares.txt'
  path.write_text(TEXT)
  return path


@pytest.fixture
def toy(text_file, tmp_path):
  """`toy(*overrides) -> Config` of a run of seconds."""

  def make(*overrides):
    return config_lib.load_config(
      'text',
      [
        f'data.path={text_file}',
        f'data.cache_dir={tmp_path / "cache"}',
        'model.context=16',
        'model.width=16',
        'model.depth=2',
        'model.num_heads=2',
        'model.precision=float32',
        'train.steps=12',
        'train.batch_size=8',
        'optim.warmup_steps=2',
        'eval.batch_size=16',
        'log.every=1',
        'log.sample_chars=0',
        *overrides,
      ],
    )

  return make
