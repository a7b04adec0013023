"""Documentation of single settings, for `craft config docs KEY`."""

import dataclasses
import functools
import re
import textwrap
from typing import Any

from craft_jax.config import describe, rules, shipped
from craft_jax.config import load as config_lib
from craft_jax.errors import UserError, hint


@dataclasses.dataclass(frozen=True)
class Meaning:
  """Documentation of a setting.

  Attributes:
    name: dotted name.
    doc: description.
    default: default value.
    allowed: type and bounds, or the choices.
    unit: unit of a number, or ''.
    free: whether it may change when a run is resumed.
    related: settings that it interacts with.
    refused: messages of the rules that name it, without values.
    shipped: `{config: value}` of the shipped configs that set it.
  """

  name: str
  doc: str
  default: Any
  allowed: str
  unit: str
  free: bool
  related: tuple[str, ...]
  refused: tuple[str, ...]
  shipped: dict[str, Any]


def meaning(name: str) -> Meaning:
  """Collects the documentation of a setting.

  Args:
    name: dotted name of an existing setting.
  """
  known = config_lib.known_settings()
  kind, field = known[name]
  checks = [text for text in _checks() if name in _names(text)]
  related = [*field.metadata['see']]
  related += [n for n, (_, f) in known.items() if name in f.metadata['see']]
  related += [other for text in checks for other in _names(text)]
  return Meaning(
    name=name,
    doc=field.metadata['doc'],
    default=field.default,
    allowed=describe.allowed(kind, field),
    unit=field.metadata['unit'],
    free=field.metadata['free'],
    related=tuple(n for n in dict.fromkeys(related) if n != name),
    refused=tuple(text.partition(';')[0] for text in checks),
    shipped={
      spec: values[name]
      for spec, values in _shipped().items()
      if name in values
    },
  )


def find(key: str) -> list[str]:
  """Finds settings by dotted name, section, last part or substring.

  Raises:
    UserError: no setting matches.
  """
  known = config_lib.known_settings()
  key = key.removeprefix('config.').removesuffix('.')
  if key in known:
    return [key]
  in_section = [name for name in known if name.rpartition('.')[0] == key]
  named = [name for name in known if name.rpartition('.')[2] == key]
  holding = [name for name in known if key and key in name]
  if found := in_section or named or holding:
    return found
  raise UserError(
    f'no setting {key!r}{hint(key, known)}; craft config show lists them all'
  )


def _names(text: str) -> list[str]:
  """Settings that a message names."""
  return [
    n
    for n in re.findall(r'\b[a-z]+\.[a-z0-9_]+', text)
    if n in config_lib.known_settings()
  ]


@functools.cache
def _checks() -> tuple[str, ...]:
  """Messages of all rules that relate settings, without values."""
  # `model.width={model.width}` becomes the name alone, other values become N.
  texts = [re.sub(r'(=|, not )\{[^}]*\}', '', r.message) for r in rules.RULES]
  texts = [re.sub(r'\{[^}]*\}', 'N', text) for text in texts]
  return tuple(text for text in texts if len(_names(text)) > 1)


@functools.cache
def _shipped() -> dict[str, dict[str, Any]]:
  """Settings of each shipped config and variant, without defaults."""
  found = {}
  for path in shipped.paths():
    for spec in shipped.specs(path):
      one = config_lib.resolve(spec)
      flat = config_lib.flatten(one.cfg)
      found[spec] = {
        name: flat[name]
        for name, origin in one.origins.items()
        if not origin.startswith('default')
      }
  return found


def lines(one: Meaning) -> list[str]:
  """Formats the documentation of a setting as lines of text."""
  resume = 'may' if one.free else 'may not'
  rows = {
    'default': repr(one.default),
    'allowed': one.allowed,
    'unit': one.unit or 'none',
    'resume': f'{resume} change when a run is resumed',
    'related': ', '.join(one.related) or 'none',
    'refused': one.refused,
    'shipped': _by_value(one.shipped) or 'no shipped config sets it',
    'flag': f'--config.{one.name}=...',
  }
  found = [one.name, *_wrapped('', one.doc, 2), '']
  for title, value in rows.items():
    for text in [value] if isinstance(value, str) else value:
      found += _wrapped(title, text, 11)
      title = ''
  return found


def _by_value(shipped: dict[str, Any]) -> str:
  """Groups configs by value: `16 in base, toy; 64 in shakespeare`."""
  values: dict[str, list[str]] = {}
  for spec, value in shipped.items():
    values.setdefault(repr(value), []).append(spec)
  return '; '.join(f'{v} in {", ".join(specs)}' for v, specs in values.items())


def _wrapped(title: str, text: str, indent: int) -> list[str]:
  first = f'  {title:<{indent - 2}}'
  return textwrap.wrap(
    text,
    79,
    initial_indent=first,
    subsequent_indent=' ' * indent,
    break_long_words=False,
    break_on_hyphens=False,
  )


def table(names: list[str]) -> list[str]:
  """Formats several settings as lines: name, default and description."""
  known = config_lib.known_settings()
  width = max(map(len, names))
  found = []
  for name in names:
    field = known[name][1]
    head = f'{name:<{width}}  {field.default!r}'
    found += [head, *_wrapped('', field.metadata['doc'], 4)]
  return found
