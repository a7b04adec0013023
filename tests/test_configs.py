"""Every shipped config, with every variant that its page names."""

import jax
import jax.numpy as jnp
import pytest

from craft_jax.config import load as config_lib
from craft_jax.config import shipped
from craft_jax.errors import UserError
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.state import init_state
from craft_jax.train.step import make_train_step
from craft_jax.types import Batch

HERE = platform_of(jax.devices()[0])

_PATHS = shipped.paths()
# What a config leaves to its user.
_GIVEN = {name: ['data.path=my.txt'] for name in ('dickens', 'pairs', 'text')}


_SPECS = [spec for path in _PATHS for spec in shipped.specs(path)]


def test_the_shipped_configs_are_there():
  assert {p.stem for p in _PATHS} >= {
    'base', 'dickens', 'g2p', 'pairs', 'shakespeare', 'shakespeare_cpu', 'text',
    'tfds', 'toy',
  }  # fmt: skip
  sizes = ('nano', 'micro', 'small', 'medium', 'large')
  assert set(_SPECS) >= {f'base:{size}' for size in sizes}


@pytest.mark.parametrize('spec', _SPECS)
def test_loads(spec):
  given = _GIVEN.get(spec.partition(':')[0], [])
  cfg = config_lib.load_config(spec, given)
  # By path as by name, and through what a run saves.
  name, colon, variant = spec.partition(':')
  path = f'{config_lib.config_dir() / name}.py{colon}{variant}'
  assert config_lib.load_config(path, given) == cfg
  assert config_lib.from_json(config_lib.to_json(cfg)) == cfg


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
    config_lib.load_config(
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
  cfg = config_lib.load_config(spec, [*given, *_TOY_SIZE])
  model = build(cfg.model, 70, HERE)
  optimizer = build_optimizer(cfg, model)
  state = init_state(model, optimizer, jax.random.key(0), cfg.train.ema > 0)
  x_BT = jax.random.randint(jax.random.key(1), (8, 16), 0, 70)
  batch = Batch(x_BT, x_BT, jnp.ones(x_BT.shape), jnp.zeros_like(x_BT))
  step = jax.jit(make_train_step(cfg, model, optimizer))
  after, sums = step(state, batch, jax.random.key(2))
  assert after.step == 1 and sums['good'] == 1
  moved = jax.tree.map(lambda a, b: (a != b).any(), after.params, state.params)
  assert any(jax.tree.leaves(moved))


_REFERENCE = 'ml_collections.ConfigDict(copy.deepcopy(c.to_dict())).lock()'
# What people do with a ConfigDict, and the settings that come of it.
_DOINGS = {
  'copy': ('c = copy.copy(c)\n', {}),
  'deepcopy': ('c = copy.deepcopy(c)\n  c.seed = 7', {'seed': 7}),
  'pickle': ('c = pickle.loads(pickle.dumps(c))\n', {}),
  'resolved': ('c = c.copy_and_resolve_references()\n', {}),
  'wrapped': ('c = ml_collections.ConfigDict(c)\n', {}),
  'frozen': ('c = ml_collections.FrozenConfigDict(c)\n', {}),
  'yaml': ('c = yaml.unsafe_load(c.to_yaml())\n', {}),
  'dict': ('c = c.to_dict()\n', {}),
  'json': ('c = json.loads(c.to_json())\n', {}),
  'section': ('c.model = {"width": 32}\n', {'model.width': 32}),
  'section of its kind': (
    'c.model = ml_collections.ConfigDict({"width": 32})\n',
    {'model.width': 32},
  ),
  'section of another': (
    'd = default_config()\n  d.model.width = 32\n  c.model = d.model\n',
    {'model.width': 32},
  ),
  'section by key': (
    'c["model"] = dict(c.model, width=32)\n',
    {'model.width': 32},
  ),
  'update': (
    'c.update({"model": {"width": 32}}, seed=3)\n',
    {'model.width': 32, 'seed': 3},
  ),
  'flattened': (
    'c.update_from_flattened_dict({"model.width": 32})\n',
    {'model.width': 32},
  ),
  'unlock': ('c.unlock()\n  c.seed = 3\n  c.lock()\n', {'seed': 3}),
  'unlocked': ('with c.unlocked():\n    c.seed = 3\n', {'seed': 3}),
  'reference': (
    'c.eval.stride = c.model.get_ref("width")\n  c.model.width = 32\n',
    {'model.width': 32, 'eval.stride': 32},
  ),
  'iteration': (
    'for k in c.model:\n    c.model[k] = c.model[k]\n'
    '  assert dict(**c.model) == dict(c.model.items())\n'
    '  assert "width" in c.model and len(c.model) == len(list(c.model))\n',
    {},
  ),
  'equality': (
    f'assert c == {_REFERENCE}\n  assert {_REFERENCE} == c\n'
    '  assert type(c) is type(c.model) is ml_collections.ConfigDict\n',
    {},
  ),
}  # fmt: skip


@pytest.mark.parametrize('what', _DOINGS)
def test_a_config_is_a_config_dict(tmp_path, what):
  code, changed = _DOINGS[what]
  path = tmp_path / 'mine.py'
  path.write_text(
    'import copy, json, pickle\n\nimport ml_collections\nimport yaml\n\n'
    'from craft_jax.config.load import default_config\n\n\n'
    f'def get_config():\n  c = default_config()\n  {code}\n  return c\n'
  )
  found = config_lib.resolve(str(path))
  expected = config_lib.flatten(config_lib.Config()) | changed
  assert config_lib.flatten(found.cfg) == expected
  where = {n for n, origin in found.origins.items() if origin != 'default'}
  if what not in ('iteration', 'section by key', 'section of another'):
    assert where == changed.keys()


def test_the_line_of_a_section(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from craft_jax.config.load import default_config\n'
    'def get_config():\n  c = default_config()\n'
    '  c.model = {"width": 32}\n'
    '  c.model.depth = 3\n'
    '  return c\n'
  )
  origins = config_lib.resolve(str(path)).origins
  assert origins['model.width'] == f'{path}:4'
  assert origins['model.depth'] == f'{path}:5'


@pytest.mark.parametrize('name', ['config.json', 'saved'])
def test_a_saved_config_is_a_config_file(tmp_path, name):
  cfg = config_lib.load_config('toy', ['model.width=32', "text.clean=('nfc',)"])
  path = tmp_path / name
  path.write_text(config_lib.to_json(cfg))
  assert config_lib.load_config(str(path)) == cfg
  assert config_lib.load_config(str(path), ['seed=3']).seed == 3
  origins = config_lib.resolve(str(path), ['seed=3']).origins
  assert origins['model.width'] == str(path)
  assert (origins['seed'], origins['model.window']) == ('flag', 'default')
  with pytest.raises(UserError, match='has no variants'):
    config_lib.load_config(f'{path}:small')
