"""Every shipped config, with every variant that its page names."""

import jax
import jax.numpy as jnp
import pytest

from craft_jax import config, shipped
from craft_jax.errors import UserError
from craft_jax.model import build
from craft_jax.optim.optimizers import build_optimizer
from craft_jax.train.state import init_state
from craft_jax.train.step import make_train_step
from craft_jax.types import Batch

_PATHS = shipped.paths()
# What a config leaves to its user.
_GIVEN = {name: ['data.path=my.txt'] for name in ('dickens', 'text')}


_SPECS = [spec for path in _PATHS for spec in shipped.specs(path)]


def test_the_shipped_configs_are_there():
  assert {p.stem for p in _PATHS} >= {
    'base', 'dickens', 'shakespeare', 'shakespeare_cpu', 'text', 'tfds', 'toy'
  }  # fmt: skip
  sizes = ('nano', 'micro', 'small', 'medium', 'large')
  assert set(_SPECS) >= {f'base:{size}' for size in sizes}


@pytest.mark.parametrize('spec', _SPECS)
def test_loads(spec):
  given = _GIVEN.get(spec.partition(':')[0], [])
  cfg = config.load_config(spec, given)
  # By path as by name, and through what a run saves.
  name, colon, variant = spec.partition(':')
  path = f'{config.config_dir() / name}.py{colon}{variant}'
  assert config.load_config(path, given) == cfg
  assert config.from_json(config.to_json(cfg)) == cfg


@pytest.mark.parametrize('path', _PATHS, ids=lambda p: p.stem)
def test_docstring_is_a_lab_page(path):
  page = path.read_text(encoding='utf-8').split('"""')[1].lower()
  for word in ('--config=', 'data:', 'result:', 'time:', 'device:'):
    assert word in page, f'{path.name} does not say {word!r}'


@pytest.mark.parametrize('path', _PATHS, ids=lambda p: p.stem)
def test_unknown_variant_is_one_line(path):
  if path.stem == 'tfds':  # any name may be a data set that is prepared
    return
  with pytest.raises(UserError) as caught:
    config.load_config(
      f'{path.stem}:no-such-variant', _GIVEN.get(path.stem, [])
    )
  assert '\n' not in str(caught.value)


# The dims that make a step quick; the rest is the config's own.
_TOY_SIZE = [
  'eval.stride=0',
  'model.context=16',
  'model.width=32',
  'model.depth=2',
  'model.num_heads=2',
  'train.batch_size=8',
]


@pytest.mark.slow
@pytest.mark.parametrize('name', [p.stem for p in _PATHS])
def test_builds_and_steps_at_toy_size(name):
  given = _GIVEN.get(name, [])
  spec = 'tfds:any' if name == 'tfds' else name
  cfg = config.load_config(spec, [*given, *_TOY_SIZE])
  model = build(cfg.model, 70)
  optimizer = build_optimizer(cfg, model.precision)
  state = init_state(model, optimizer, jax.random.key(0), cfg.train.ema > 0)
  x_BT = jax.random.randint(jax.random.key(1), (8, 16), 0, 70)
  batch = Batch(x_BT, x_BT, jnp.ones(x_BT.shape), jnp.zeros_like(x_BT))
  step = jax.jit(make_train_step(cfg, model, optimizer))
  after, sums = step(state, batch, jax.random.key(2))
  assert after.step == 1 and sums['good'] == 1
  moved = jax.tree.map(lambda a, b: (a != b).any(), after.params, state.params)
  assert any(jax.tree.leaves(moved))
