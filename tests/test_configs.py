"""Every shipped config, with every variant that its page names."""

import pathlib
import re

import pytest

from craft_jax import config
from craft_jax.errors import UserError

_PATHS = sorted(config.config_dir().glob('[!_]*.py'))
# What a config leaves to its user.
_GIVEN = {'text': ['data.path=my.txt']}


def specs(path: pathlib.Path) -> list[str]:
  """`name` and `name:variant` of every variant in the file's docstring.

  A page documents a variant by showing it in use, `--config=base:small` or
  `configs/base.py:small`. A variant in capitals stands for the user's choice.
  """
  text = path.read_text(encoding='utf-8').split('"""')[1]
  named = re.findall(rf'\b{path.stem}(?:\.py)?:([a-z]\w*)', text)
  choice = re.search(rf'\b{path.stem}(?:\.py)?:[A-Z]', text)
  plain = [] if choice else [path.stem]
  return plain + [f'{path.stem}:{v}' for v in dict.fromkeys(named)]


_SPECS = [spec for path in _PATHS for spec in specs(path)]


def test_the_shipped_configs_are_there():
  assert {p.stem for p in _PATHS} >= {
    'base', 'shakespeare', 'shakespeare_cpu', 'text', 'tfds', 'toy'
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
