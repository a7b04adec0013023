"""Show, compare, start, check and document configs.

show   every setting as it would be used, and where its value came from
diff   the settings in which two configs differ
new    write a commented config file to start from
check  everything that would stop a run, without training
docs   what a setting means: unit, default, bounds, what it relates to

examples:
  craft config show --config=base --config.model.width=96
  craft config docs optim.warmup_steps
"""

import argparse
import dataclasses
import pathlib
import shlex
from collections.abc import Callable

from craft_jax.cli import saved_config
from craft_jax.config import describe
from craft_jax.config.load import load_config, resolve
from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.runs.layout import CONFIG
from craft_jax.runtime import strict_json
from craft_jax.runtime.files import is_remote, write_atomic

SUMMARY = 'show, compare, start, check and document configs'
_WHICH = 'file, or name of a shipped config, with :variant'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the subcommands and their flags."""
  actions = parser.add_subparsers(dest='action', required=True)

  def action(name: str, text: str) -> argparse.ArgumentParser:
    page = _ACTIONS[name].__doc__
    return actions.add_parser(name, help=text, description=page)

  show = action('show', 'every setting, and where its value came from')
  show.add_argument(
    'dirs',
    nargs='?',
    metavar='DIR',
    help='a run directory, or its config.json (default: the config below)',
  )
  show.add_argument('--config', help=f'{_WHICH} (default: base)')
  show.add_argument(
    '--set', action='store_true', help='leave out what nobody set'
  )
  _add_json(show)

  diff = action('diff', 'the settings in which two configs differ')
  diff.add_argument('a', metavar='A', help='file, name or run directory')
  diff.add_argument('b', metavar='B', help='file, name or run directory')
  _add_json(diff)

  new = action('new', 'write a commented config file to start from')
  new.add_argument('path', metavar='FILE', help='the file to write')
  new.add_argument('--from', dest='config', default='base', help=_WHICH)

  _add_check(
    action('check', 'everything that would stop a run, without training')
  )
  docs = action('docs', 'what a setting means; without a KEY, all as Markdown')
  docs.add_argument(
    'key',
    nargs='?',
    metavar='KEY',
    help='a setting, a section, or a part of a name (default: all, Markdown)',
  )
  docs.add_argument(
    '--write',
    metavar='PAGE',
    help='refresh the tables between the markers in PAGE (default: print)',
  )
  _add_json(docs)


def _add_check(check: argparse.ArgumentParser) -> None:
  check.add_argument('--config', default='base', help=_WHICH)
  check.add_argument(
    '--workdir', metavar='DIR', default='runs/new', help='where it would be'
  )
  check.add_argument(
    '--device',
    default='',
    help='a name that craft plan knows, for the memory (default: this machine)',
  )
  check.add_argument(
    '--devices',
    type=int,
    default=0,
    metavar='N',
    help='how many (default: those of this machine; 1 of --device)',
  )
  _add_json(check)


def _add_json(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--json',
    action='store_true',
    help='print one JSON object, last on standard output',
  )


def run(args: argparse.Namespace) -> int:
  """Runs the chosen subcommand; returns the exit code."""
  return _ACTIONS[args.action](args)


def _show(args: argparse.Namespace) -> int:
  """Show every setting as it would be used, and where its value came from.

  `default`, `flag`, or the file and the line that set it; * marks what is not
  at its default. Of a run, as its own command tells.

  examples:
    craft config show --config=base:small --config.train.steps=500
    craft config show runs/first --set
  """
  if args.dirs is None:
    found = resolve(args.config or 'base', args.overrides)
    for problem in found.problems:
      raise UserError(problem)
  elif args.config or args.overrides:
    raise UserError('a run has its settings; leave --config out, or the run')
  else:
    found = saved_config.resolved(args.dirs)
  print('\n'.join(describe.lines(found.cfg, found.origins, args.set)))
  if args.json:
    print(
      strict_json.dumps(
        {
          'config': dataclasses.asdict(found.cfg),
          'changed': describe.changed(found.cfg),
          'origin': found.origins,
        }
      )
    )
  return 0


def _load(spec: str) -> Config:
  """A config by file or name, or as a run has saved it.

  Raises:
    UserError: no such config, or not a saved config.
  """
  if (
    is_remote(spec)
    or spec.endswith('.json')
    or (pathlib.Path(spec) / CONFIG).is_file()
  ):
    return saved_config.load(spec)
  return load_config(spec)


def _diff(args: argparse.Namespace) -> int:
  """Show the settings in which two configs differ.

  Each is a file, the name of a shipped config, or a run directory.

  examples:
    craft config diff base base:small
    craft config diff runs/first base --json
  """
  rows = describe.differences(_load(args.a), _load(args.b))
  for name, (a, b) in rows.items():
    print(f'{name}: {a!r} -> {b!r}')
  if not rows:
    print('no differences')
  if args.json:
    print(strict_json.dumps(rows))
  return 0


def _new(args: argparse.Namespace) -> int:
  """Write a commented config file to start from.

  It holds every setting with its meaning: what differs from the defaults is
  set, the rest stands as comments.

  examples:
    craft config new my.py --from=base
    craft config new small.py --from=text:small --config.data.path=my.txt
  """
  path = pathlib.Path(args.path)
  if path.suffix != '.py':
    raise UserError(f'{path} must end in .py, as config files do')
  if path.exists():
    raise UserError(f'{path} exists; choose another name or remove it first')
  found = resolve(args.config, args.overrides)
  # What a config leaves to its user can be said in the new file.
  missing = [p for p in found.problems if p.startswith(_LEFT_OPEN)]
  for problem in found.problems:
    if problem not in missing:
      raise UserError(problem)
  text = describe.config_file(found.cfg, args.config, path.as_posix())
  write_atomic(path, text)
  next = shlex.join(['craft', 'train', f'--config={path}'])
  print(f'wrote {path}; next: {next}')
  for problem in missing:
    print(f'first: {problem.replace("--config.", "config.")}')
  return 0


def _check(args: argparse.Namespace) -> int:
  """Look for everything that would stop a run, without training.

  Settings and what relates them, text, vocabulary, splits, devices, memory by
  craft plan's arithmetic, folders, disk. All problems are listed; exit code 2
  if there are any. The text is prepared, which training then reuses.

  examples:
    craft config check --config=text --config.data.path=my.txt
    craft config check --config=base:large --device=h100-80gb --devices=8
  """
  if args.devices < 0:
    raise UserError(f'--devices={args.devices} must be at least 1')
  if args.device:
    import jax

    jax.config.update('jax_platforms', 'cpu')  # leave accelerators to others
    from craft_jax.train import plan

    plan.find_device(args.device)
  from craft_jax.train import preflight

  found = resolve(args.config, args.overrides)
  machine = preflight.Machine(args.device, args.devices)
  rows = list(preflight.preflight(found, args.workdir, machine))
  print('\n'.join(preflight.table(rows)))
  if args.json:
    print(strict_json.dumps(preflight.as_dict(rows)), flush=True)
  if wrong := [row for row in rows if row.status == preflight.PROBLEM]:
    raise UserError(f'{len(wrong)} of {len(rows)} checks found a problem')
  return 0


def _docs(args: argparse.Namespace) -> int:
  """Say what a setting means: unit, default, bounds, what it relates to.

  A section, such as optim, lists its settings; so does a part of a name that
  several have. Without a KEY, the reference of all as Markdown.

  examples:
    craft config docs optim.warmup_steps
    craft config docs model
  """
  if args.key is not None:
    return _explain(args)
  if args.json:
    raise UserError(
      '--json needs a KEY, such as craft config docs model --json'
    )
  if not args.write:
    print(describe.markdown())
    return 0
  page = pathlib.Path(args.write)
  if page.exists() and not page.is_file():  # a device may never end
    raise UserError(f'--write={page} is no file; give a page of Markdown')
  write_atomic(page, describe.refreshed(page.read_text(encoding='utf-8')))
  print(f'refreshed {page}')
  return 0


def _explain(args: argparse.Namespace) -> int:
  from craft_jax.config import meaning

  if args.write:
    raise UserError('--write refreshes the page of all; leave the KEY out')
  names = meaning.find(args.key)
  if len(names) == 1:
    one = meaning.meaning(names[0])
    print('\n'.join(meaning.lines(one)))
    found = dataclasses.asdict(one)
  else:
    print('\n'.join(meaning.table(names)))
    found = {n: dataclasses.asdict(meaning.meaning(n)) for n in names}
  if args.json:
    print(strict_json.dumps(found))
  return 0


# What shipped configs ask of their user.
_LEFT_OPEN = ('data.source=path needs', 'data.source=tfds needs')
_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
  'show': _show,
  'diff': _diff,
  'new': _new,
  'check': _check,
  'docs': _docs,
}
