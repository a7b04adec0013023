"""What `craft bench` does: lists the benchmarks, runs one, keeps its result."""

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

_SHARED = 'measure'  # what every benchmark imports, and no generator does
_SLUG = '[a-z0-9]+(-[a-z0-9]+)*'
_BARS = 'ratio at most'  # what a bar bounds, where a result does not say


def run(
  folder: pathlib.Path,
  name: str | None,
  flags: Sequence[str],
  overrides: Sequence[str],
  save: bool,
) -> int:
  """Lists the benchmarks, or runs one.

  Args:
    folder: of the benchmarks.
    name: of a script; None lists them.
    flags: for the script.
    overrides: of settings, such as `model.width=64`, for the script.
    save: keep the result; `--save` among the flags says so, too.

  Returns:
    The exit code.

  Raises:
    UserError: no such script.
    RunFailed: it has no result to keep.
  """
  scripts = _scripts(folder)
  save = save or '--save' in flags
  flags = [flag for flag in flags if flag != '--save']
  if name is None:
    if save or overrides:
      raise UserError(f'which benchmark? {_known(scripts)}')
    print('\n'.join(_listing(folder, scripts)))
    return 0
  if name not in scripts:
    raise UserError(
      f'no benchmark {name!r}{hint(name, scripts)}; {_known(scripts)}'
    )
  flags += [f'--set={override}' for override in overrides]
  code, last = _run_script(folder, name, flags, save)
  if save and not code:
    path = _save(folder, name, last)
    print(f'saved {os.path.relpath(path)}', file=sys.stderr)
  return code


def _known(scripts: Mapping[str, str]) -> str:
  return f'there are: {", ".join(scripts)}'


def _scripts(folder: pathlib.Path) -> dict[str, str]:
  """The first line of each script that measures, by its name."""
  found = {}
  for path in sorted(folder.glob('*.py')):
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


def _run_script(
  folder: pathlib.Path, name: str, flags: Sequence[str], keep: bool
) -> tuple[int, str]:
  """Exit code of a script, and its last line if that is to be kept."""
  command = [sys.executable, str(folder / f'{name}.py'), *flags]
  if not keep:
    return _code(
      subprocess.run(command, env=_environment(folder)).returncode
    ), ''
  last = ''
  with subprocess.Popen(
    command,
    env=_environment(folder),
    stdout=subprocess.PIPE,
    encoding='utf-8',
    errors='backslashreplace',
  ) as process:
    assert process.stdout
    for line in process.stdout:
      print(line, end='', flush=True)
      last = line if line.strip() else last
  return _code(process.returncode), last


def _environment(folder: pathlib.Path) -> dict[str, str]:
  """This checkout's package for the script, and its lines as they come."""
  paths = [str(folder.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
  return os.environ | {
    'PYTHONPATH': os.pathsep.join(paths),
    'PYTHONUNBUFFERED': '1',
  }


def _code(returncode: int) -> int:
  """The exit code as a shell gives it: 128 and the signal that ended it."""
  return 128 - returncode if returncode < 0 else returncode


def _save(folder: pathlib.Path, name: str, line: str) -> pathlib.Path:
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
  path = folder / 'results' / str(device) / f'{stem}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomic(path, json.dumps(result, indent=2) + '\n')
  return path


def _listing(folder: pathlib.Path, scripts: Mapping[str, str]) -> Iterator[str]:
  """A line per script, and one per figure that is kept of it."""
  devices = sorted(p.name for p in (folder / 'results').glob('*/'))
  device = _device(folder) if devices else ''
  width = max(map(len, scripts), default=0)
  for name, question in scripts.items():
    yield f'  {name:<{width}}  {question}'
    kept = folder / 'results' / device if device else folder
    for path in sorted(
      [*kept.glob(f'{name}.json'), *kept.glob(f'{name}-*.json')]
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
    yield f'There are some of {", ".join(others)} in {folder / "results"}.'


def _device(folder: pathlib.Path) -> str:
  """This device as its results are filed; '' with a warning if JAX fails."""
  done = subprocess.run(
    [sys.executable, str(folder / f'{_SHARED}.py')],
    env=_environment(folder),
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
