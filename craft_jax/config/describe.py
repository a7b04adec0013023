"""Settings as text: reference tables, new config files and differences."""

import dataclasses
import pathlib
import shlex
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

from craft_jax.config.load import flatten, settings
from craft_jax.config.settings import Config
from craft_jax.errors import UserError

BEGIN = '<!-- settings: begin -->'
END = '<!-- settings: end -->'

_NEW = '''"""{title}.

Started from `{spec}`; what differs from the defaults is set below, the rest
stands as comments. Change this page into your own: what is asked, the data,
the expected result, time and device.

  {command}
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config


def get_config() -> ConfigDict:
  """The settings of the run."""
  config = default_config()
{body}
  return config
'''


def changed(cfg: Config) -> dict[str, Any]:
  """Settings that differ from their defaults, `{dotted name: value}`."""
  usual = flatten(Config())
  return {k: v for k, v in flatten(cfg).items() if v != usual[k]}


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
  """Settings that differ between two configs, `{name: (in a, in b)}`."""
  left, right = flatten(a), flatten(b)
  return {k: (v, right[k]) for k, v in left.items() if v != right[k]}


def lines(
  cfg: Config, origins: Mapping[str, str], only_set: bool = False
) -> list[str]:
  """Formats every setting as `name = value  origin`.

  `*` marks a setting that differs from its default.

  Args:
    cfg: the settings.
    origins: origin of each value by dotted name (`config.load.Resolved`).
    only_set: leave out settings that neither the file nor a flag sets.
  """
  marked = changed(cfg)
  flat = flatten(cfg)
  width = max(map(len, flat))
  return [
    f'{"*" if name in marked else " "} {name:<{width}} = {value!r:<16}  '
    f'{origins[name]}'
    for name, value in flat.items()
    if not only_set or not origins[name].startswith('default')
  ]


def allowed(kind: Any, field: dataclasses.Field) -> str:
  """Allowed values of a setting: its choices, or its type and bounds."""
  meta = field.metadata
  several = typing.get_origin(kind) is tuple
  if meta['choices']:
    return ('any of ' if several else '') + ', '.join(meta['choices'])
  name = 'names' if several else kind.__name__
  low, high = (
    f'{bound:g}' if isinstance(bound, float) else bound
    for bound in (meta['low'], meta['high'])
  )
  if low is not None and high is not None:
    return f'{name} {low} to {high}'
  if low is not None:
    return f'{name} from {low}'
  return name if high is None else f'{name} up to {high}'


def markdown() -> str:
  """Markdown tables of all settings, one per section."""
  sections: dict[str, list[str]] = {}
  for name, kind, field in settings():
    section, _, leaf = name.rpartition('.')
    cells = (
      f'`{leaf}`',
      f'`{field.default!r}`',
      allowed(kind, field),
      field.metadata['unit'],
      'yes' if field.metadata['free'] else '',
      field.metadata['doc'],
    )
    row = '| ' + ' | '.join(c.replace('|', '\\|') for c in cells) + ' |'
    sections.setdefault(section, []).append(row)
  header = [
    '| setting | default | allowed | unit | may change on resume | meaning |',
    '|---|---|---|---|---|---|',
  ]
  parts = []
  for section, rows in sections.items():
    title = f'### {section}: {purpose(section)}' if section else '### The run'
    parts.append('\n'.join([title, '', *header, *rows]))
  return '\n\n'.join(parts)


def purpose(section: str) -> str:
  """First line of the docstring of a section's dataclass."""
  doc = typing.get_type_hints(Config)[section].__doc__ or ''
  return doc.split('\n')[0].removesuffix('.')


def refreshed(page: str) -> str:
  """Replaces the part of a page between the two markers by the tables.

  Raises:
    UserError: a marker is missing, or they are in the wrong order.
  """
  head, begin, rest = page.partition(BEGIN)
  _, end, tail = rest.partition(END)
  if not begin or not end:
    raise UserError(
      f'the page has no place for the settings; add lines {BEGIN} and {END}'
    )
  return f'{head}{BEGIN}\n\n{markdown()}\n\n{END}{tail}'


def config_file(cfg: Config, spec: str, path: str) -> str:
  """Source code of a config file that resolves to `cfg`.

  Args:
    cfg: the settings.
    spec: config that they were read from, named in the file's docstring.
    path: path of the new file, named in its docstring.
  """
  marked = changed(cfg)
  body = []
  section = None
  for name, kind, field in settings():
    here = name.rpartition('.')[0]
    if here != section:
      section = here
      body += ['', f'  # --- {here or "the run"}', '']
    note = f'{field.metadata["doc"]} ({allowed(kind, field)})'
    body += textwrap.wrap(
      note, 78, initial_indent='  # ', subsequent_indent='  # '
    )
    value = marked.get(name, field.default)
    comment = '' if name in marked else '# '
    body.append(f'  {comment}config.{name} = {value!r}')
  stem = pathlib.PurePath(path).stem
  command = ['craft', 'train', f'--config={path}', f'--workdir=runs/{stem}']

  def inert(text: str) -> str:  # escaped for the docstring
    return text.replace('\\', '\\\\').replace('"', '\\"')

  return _NEW.format(
    title=inert(stem),
    spec=inert(spec),
    command=inert(shlex.join(command)),
    body='\n'.join(body),
  )
