"""Show, compare, create, check and document configs.

show   the value and origin of every setting
diff   the settings in which two configs differ
new    write a commented config file to start from
check  everything that would stop a run, without training
docs   the meaning of a setting: unit, default, bounds, related settings

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

SUMMARY = 'show, compare, create, check and document configs'
_WHICH = 'config file or name of a shipped one, with :variant'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the subcommands and their flags."""
  actions = parser.add_subparsers(dest='action', required=True)

  def action(name: str, text: str) -> argparse.ArgumentParser:
    page = _ACTIONS[name].__doc__
    return actions.add_parser(name, help=text, description=page)

  show = action('show', 'the value and origin of every setting')
  show.add_argument(
    'dirs',
    nargs='?',
    metavar='DIR',
    help='a run directory, or its config.json (default: the config below)',
  )
  show.add_argument('--config', help=f'{_WHICH} (default: base)')
  show.add_argument(
    '--set', action='store_true', help='show only what the file or flags set'
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
  docs = action('docs', 'the meaning of a setting; without KEY, all settings')
  docs.add_argument(
    'key',
    nargs='?',
    metavar='KEY',
    help='setting, section or part of a name (default: all, as Markdown)',
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
    '--workdir', metavar='DIR', default='runs/new', help='future run directory'
  )
  check.add_argument(
    '--device',
    default='',
    help='device whose memory counts, as in craft plan (default: this machine)',
  )
  check.add_argument(
    '--devices',
    type=int,
    default=0,
    metavar='N',
    help='number of devices (default: all of this machine; 1 with --device)',
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
  """Show the value and origin of every setting.

  The origin is `default`, `flag`, or the file and line that set the value; for
  a run, as given by the command that started it. * marks a setting that
  differs from its default.

  examples:
    craft config show --config=base:small --config.train.steps=500
    craft config show runs/first --set
  """
  if args.dirs is None:
    found = resolve(args.config or 'base', args.overrides)
    for problem in found.problems:
      raise UserError(problem)
  elif args.config or args.overrides:
    raise UserError('a run has its own settings; remove --config, or the run')
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
  """Loads a config file, a shipped config or the config of a run.

  Raises:
    UserError: it does not exist or is invalid.
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

  It lists every setting with its meaning. Settings that differ from their
  defaults are set, the others are comments.

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
  # Settings that a config leaves to the user can be set in the new file.
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
  """Check for everything that would stop a run, without training.

  Checks settings and their combinations, text, vocabulary, splits, devices,
  memory as estimated by craft plan, folders and disk. Lists all problems; the
  exit code is 2 if there are any. Training reuses the text prepared here.

  examples:
    craft config check --config=text --config.data.path=my.txt
    craft config check --config=base:large --device=h100-80gb --devices=8
  """
  if args.devices < 0:
    raise UserError(f'--devices={args.devices} must be at least 1')
  if args.device:
    import jax

    jax.config.update('jax_platforms', 'cpu')  # do not occupy an accelerator
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
  """Show the meaning of a setting: unit, default, bounds, related settings.

  A section, such as optim, lists its settings; a part of a name lists all
  settings that match. Without KEY: the reference of all, as Markdown.

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
  if page.exists() and not page.is_file():  # reading a device may never end
    raise UserError(f'--write={page} is not a file; give a page of Markdown')
  write_atomic(page, describe.refreshed(page.read_text(encoding='utf-8')))
  print(f'refreshed {page}')
  return 0


def _explain(args: argparse.Namespace) -> int:
  from craft_jax.config import meaning

  if args.write:
    raise UserError('--write refreshes the page of all settings; remove KEY')
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


# Problems of shipped configs that the user has to solve.
_LEFT_OPEN = ('data.source=path needs', 'data.source=tfds needs')
_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
  'show': _show,
  'diff': _diff,
  'new': _new,
  'check': _check,
  'docs': _docs,
}
