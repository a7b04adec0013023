"""Run a benchmark of the checkout, or list them with the results kept.

Without a name: what each script asks, and what it found on this device. All
that follows a name goes to the script, --help too; a setting
(--config.a.b=v) goes to it as --set a.b=v.

examples:
  craft bench
  craft bench guards --help
  craft bench guards --pairs 40 --save
"""

import argparse
import ast
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from craft_jax.errors import RunFailed, UserError, hint, one_line
from craft_jax.runtime import files

SUMMARY = 'run a benchmark, or list them (in a checkout)'
FOLDER = pathlib.Path(__file__).parents[2] / 'benchmarks'
_SHARED = 'measure'  # what every benchmark imports, and no generator does
_SLUG = '[a-z0-9]+(-[a-z0-9]+)*'
_BARS = 'ratio at most'  # what a bar bounds, where a result does not say


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    'name', nargs='?', metavar='NAME', help='a script (default: list them)'
  )
  parser.add_argument(
    'flags',
    nargs=argparse.REMAINDER,
    metavar='...',
    help='what the script is given',
  )
  parser.add_argument(
    '--save',
    action='store_true',
    help='keep the result under benchmarks/results/DEVICE (before or '
    'after NAME)',
  )
  parser.set_defaults(config=None)  # settings are taken, for the script


def run(args: argparse.Namespace) -> int:
  """Lists, or runs one script; returns its exit code."""
  if not (FOLDER / f'{_SHARED}.py').is_file():
    raise UserError(
      'the benchmarks are not part of an installed package; run craft bench '
      'from a checkout of Craft (pip install -e .)'
    )
  scripts = _scripts()
  save = args.save or '--save' in args.flags
  flags = [flag for flag in args.flags if flag != '--save']
  if args.name is None:
    if save or args.overrides:
      raise UserError(f'which benchmark? {_known(scripts)}')
    print('\n'.join(_listing(scripts)))
    return 0
  if args.name not in scripts:
    raise UserError(
      f'no benchmark {args.name!r}{hint(args.name, scripts)}; {_known(scripts)}'
    )
  flags += [f'--set={override}' for override in args.overrides]
  code, last = _run_script(args.name, flags, save)
  if save and not code:
    path = _save(args.name, last)
    print(f'saved {os.path.relpath(path)}', file=sys.stderr)
  return code


def _known(scripts: Mapping[str, str]) -> str:
  return f'there are: {", ".join(scripts)}'


def _scripts() -> dict[str, str]:
  """The first line of each script that measures, by its name."""
  found = {}
  for path in sorted(FOLDER.glob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'), str(path))
    imported = {
      alias.name
      for node in tree.body
      if isinstance(node, ast.Import)
      for alias in node.names
    }
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    if _SHARED in imported and 'main' in defined:
      lines = (ast.get_docstring(tree) or '').splitlines()
      found[path.stem] = lines[0] if lines else ''
  return found


def _run_script(name: str, flags: Sequence[str], keep: bool) -> tuple[int, str]:
  """Exit code of a script, and its last line if that is to be kept."""
  command = [sys.executable, str(FOLDER / f'{name}.py'), *flags]
  if not keep:
    return _code(subprocess.run(command, env=_environment()).returncode), ''
  last = ''
  with subprocess.Popen(
    command,
    env=_environment(),
    stdout=subprocess.PIPE,
    encoding='utf-8',
    errors='backslashreplace',
  ) as process:
    assert process.stdout
    for line in process.stdout:
      print(line, end='', flush=True)
      last = line if line.strip() else last
  return _code(process.returncode), last


def _environment() -> dict[str, str]:
  """This checkout's package for the script, and its lines as they come."""
  paths = [str(FOLDER.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
  return os.environ | {
    'PYTHONPATH': os.pathsep.join(paths),
    'PYTHONUNBUFFERED': '1',
  }


def _code(returncode: int) -> int:
  """The exit code as a shell gives it: 128 and the signal that ended it."""
  return 128 - returncode if returncode < 0 else returncode


def _save(name: str, line: str) -> pathlib.Path:
  """Writes the result of a script; where.

  Raises:
    RunFailed: the line is no JSON object that names its device.
  """
  try:
    result = json.loads(line)
  except ValueError:
    result = None
  known = result if isinstance(result, dict) else {}
  device, case = known.get('device') or '', known.get('case') or 'none'
  if not all(re.fullmatch(_SLUG, str(part)) for part in (device, case)):
    raise RunFailed(
      f'the last line of {name} is not a JSON object with its `device`; '
      'nothing is saved'
    )
  stem = f'{name}-{case}' if 'case' in known else name
  path = FOLDER / 'results' / str(device) / f'{stem}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomic(path, json.dumps(result, indent=2) + '\n')
  return path


def _listing(scripts: Mapping[str, str]) -> Iterator[str]:
  """A line per script, and one per figure that is kept of it."""
  devices = sorted(p.name for p in (FOLDER / 'results').glob('*/'))
  device = _device() if devices else ''
  width = max(map(len, scripts), default=0)
  for name, question in scripts.items():
    yield f'  {name:<{width}}  {question}'
    folder = FOLDER / 'results' / device if device else FOLDER
    for path in sorted(
      [*folder.glob(f'{name}.json'), *folder.glob(f'{name}-*.json')]
    ):
      case = path.stem.removeprefix(name).removeprefix('-')
      for figure in _figures(json.loads(path.read_text(encoding='utf-8'))):
        yield f'  {"":<{width}}    {f"{case}: " if case else ""}{figure}'
  yield ''
  if device in devices:
    yield f'The figures are those of {device}.'
  else:
    yield f'No figures of {device or "this device"} are kept.'
  others = [name for name in devices if name != device]
  if others:
    yield f'There are some of {", ".join(others)} in {FOLDER / "results"}.'


def _device() -> str:
  """This device as its results are filed; '' with a warning if JAX fails."""
  done = subprocess.run(
    [sys.executable, str(FOLDER / f'{_SHARED}.py')],
    env=_environment(),
    capture_output=True,
    text=True,
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['it says nothing']
    reason = one_line(RuntimeError(lines[-1]))
    print(f'craft: the device cannot be told: {reason}', file=sys.stderr)
    return ''
  return done.stdout.strip()


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
  """The figures of a result that are not 1 by definition, with their bars."""
  key, _, side = result.get('bars', _BARS).partition(' ')
  unit = ' s' if key == 'seconds' else ''
  for name, row in result.get('variants', {}).items():
    value, bar = row.get(key), row.get('bar')
    if value is None or (value == 1 and bar is None):
      continue
    figure = f'{name}: {value:.4g}{unit}'
    if bar is not None:
      missed = value > bar if side == 'at most' else value < bar
      figure += f' ({side} {bar:g}{unit}{", missed" if missed else ""})'
    yield figure
