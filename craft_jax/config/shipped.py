"""The shipped configs and their variants, read off without running them."""

import pathlib
import re

from craft_jax.config.load import config_dir


def paths() -> list[pathlib.Path]:
  """The files of the shipped configs, by name."""
  return sorted(config_dir().glob('[!_]*.py'))


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
