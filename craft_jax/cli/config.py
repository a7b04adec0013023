"""Show, compare, start and document configs.

show  every setting after file and flags; * marks what is not the default
diff  the settings in which two configs differ; either may be the config.json
      that a run has saved
new   write a commented config file to start from
docs  the reference of all settings as Markdown
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable

from craft_jax import describe
from craft_jax.config import from_json, load_config
from craft_jax.errors import UserError
from craft_jax.files import write_atomic
from craft_jax.settings import Config

SUMMARY = 'show, compare, start and document configs'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the four subcommands and their flags."""
  actions = parser.add_subparsers(dest='action', required=True)

  def action(name: str, text: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=text, description=text)

  show = action('show', 'every setting after file and flags; * is not default')
  show.add_argument(
    '--config',
    default='base',
    help='file, or name of a shipped config, with :variant (default: base)',
  )
  show.add_argument('--json', action='store_true', help='one JSON object')

  diff = action('diff', 'the settings in which two configs differ')
  diff.add_argument('a', help="file, name, or a run's config.json")
  diff.add_argument('b', help="file, name, or a run's config.json")
  diff.add_argument('--json', action='store_true', help='one JSON object')

  new = action('new', 'write a commented config file to start from')
  new.add_argument('path', help='the file to write, e.g. my.py')
  new.add_argument(
    '--from',
    dest='config',
    default='base',
    help='file, or name of a shipped config, with :variant (default: base)',
  )

  docs = action('docs', 'the reference of all settings as Markdown')
  docs.add_argument(
    '--write', metavar='PAGE', help='refresh it between the markers in PAGE'
  )


def run(args: argparse.Namespace) -> int:
  """Runs the chosen subcommand; returns the exit code."""
  return _ACTIONS[args.action](args)


def _show(args: argparse.Namespace) -> int:
  cfg = load_config(args.config, args.overrides)
  print('\n'.join(describe.lines(cfg)))
  if args.json:
    print(
      json.dumps(
        {
          'config': dataclasses.asdict(cfg),
          'changed': describe.changed(cfg),
        }
      )
    )
  return 0


def _load(spec: str) -> Config:
  """A config by file or name, or as a run has saved it.

  Raises:
    UserError: no such config, or not a saved config.
  """
  if not spec.endswith('.json'):
    return load_config(spec)
  try:
    return from_json(pathlib.Path(spec).read_text(encoding='utf-8'))
  except (AttributeError, ValueError) as e:
    raise UserError(f'{spec} is not a saved config: {e}') from e


def _diff(args: argparse.Namespace) -> int:
  rows = describe.differences(_load(args.a), _load(args.b))
  for name, (a, b) in rows.items():
    print(f'{name}: {a!r} -> {b!r}')
  if not rows:
    print('no differences')
  if args.json:
    print(json.dumps(rows))
  return 0


def _new(args: argparse.Namespace) -> int:
  path = pathlib.Path(args.path)
  if path.suffix != '.py':
    raise UserError(f'{path} must end in .py, as config files do')
  if path.exists():
    raise UserError(f'{path} exists; choose another name or remove it first')
  cfg = load_config(args.config, args.overrides)
  write_atomic(path, describe.config_file(cfg, args.config, path.as_posix()))
  print(f'wrote {path}; next: craft train --config={path}')
  return 0


def _docs(args: argparse.Namespace) -> int:
  if not args.write:
    print(describe.markdown())
    return 0
  page = pathlib.Path(args.write)
  write_atomic(page, describe.refreshed(page.read_text(encoding='utf-8')))
  print(f'refreshed {page}')
  return 0


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
  'show': _show,
  'diff': _diff,
  'new': _new,
  'docs': _docs,
}
