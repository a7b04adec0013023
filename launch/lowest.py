"""Prints the lower bounds of pyproject.toml as pip constraints."""

import pathlib
import re
import tomllib

_ROOT = pathlib.Path(__file__).parents[1]


def lowest(project: dict) -> list[str]:
  """`['name==bound', ...]` of what running needs; tools stay free."""
  extras = project['optional-dependencies']
  return [
    re.sub(r'\[.*?\]', '', line).replace('>=', '==')
    for line in project['dependencies'] + extras['serve'] + extras['tfds']
  ]


if __name__ == '__main__':
  text = (_ROOT / 'pyproject.toml').read_text(encoding='utf-8')
  print('\n'.join(lowest(tomllib.loads(text)['project'])))
