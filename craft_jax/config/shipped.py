"""The shipped configs and their variants, listed without running them."""

import pathlib
import re

from craft_jax.config.load import config_dir


def paths() -> list[pathlib.Path]:
  """Files of the shipped configs, sorted by name."""
  return sorted(config_dir().glob('[!_]*.py'))


def specs(path: pathlib.Path) -> list[str]:
  """Specs of a config file: `name`, and `name:variant` per documented variant.

  The file's docstring documents a variant by an example, `--config=base:small`
  or `configs/base.py:small`. A variant in capitals is a placeholder, and the
  config cannot be used without a variant.
  """
  text = path.read_text(encoding='utf-8').split('"""')[1]
  named = re.findall(rf'\b{path.stem}(?:\.py)?:([a-z]\w*)', text)
  choice = re.search(rf'\b{path.stem}(?:\.py)?:[A-Z]', text)
  plain = [] if choice else [path.stem]
  return plain + [f'{path.stem}:{v}' for v in dict.fromkeys(named)]
