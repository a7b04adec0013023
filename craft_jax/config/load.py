"""Reads a config file and flags into a checked, frozen `Config`.

A config file defines `get_config(variant='')`, which changes and returns
`default_config()`, a locked `ConfigDict` of the defaults in
`craft_jax.config.settings`, and returns it changed. What relates two settings
is in `craft_jax.config.rules`; what relates them to a text or to devices, here.
"""

import ast
import dataclasses
import functools
import inspect
import json
import math
import numbers
import pathlib
import sys
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from craft_jax.config.rules import clashes
from craft_jax.config.settings import REMOVED, RENAMED, Config
from craft_jax.errors import UserError, hint, one_line

if TYPE_CHECKING:  # slow to import
  import ml_collections


def config_dir() -> pathlib.Path:
  """Folder of the shipped configs, in the wheel or in a checkout."""
  package = pathlib.Path(__file__).parents[1]
  installed = package / 'configs'
  return installed if installed.is_dir() else package.parent / 'configs'


# --- the settings as a flat list -------------------------------------------


def settings(
  cls: type = Config, prefix: str = ''
) -> Iterator[tuple[str, type, dataclasses.Field]]:
  """Yields `(dotted name, type, field)` of every setting as declared."""
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name = prefix + field.name
    if dataclasses.is_dataclass(hints[field.name]):
      yield from settings(hints[field.name], name + '.')
    else:
      yield name, hints[field.name], field


def flatten(cfg: Any, prefix: str = '') -> dict[str, Any]:
  """Flattens a `Config` to `{'model.width': 256, ...}`."""
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(cfg):
    value = getattr(cfg, field.name)
    if dataclasses.is_dataclass(value):
      flat |= flatten(value, f'{prefix}{field.name}.')
    else:
      flat[prefix + field.name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> Config:
  """Builds a `Config` from a flat mapping; missing settings get defaults.

  Raises:
    UserError: a name is unknown, or a value has the wrong type or is out of
      bounds.
  """
  tree: dict[str, Any] = {}
  for name, value in _checked_all(flat).items():
    *section, leaf = name.split('.')
    target = tree.setdefault(section[0], {}) if section else tree
    target[leaf] = value
  hints = typing.get_type_hints(Config)
  return Config(
    **{
      key: hints[key](**value) if isinstance(value, dict) else value
      for key, value in tree.items()
    }
  )


@functools.cache
def known_settings() -> dict[str, tuple[Any, dataclasses.Field]]:
  """All settings, `{dotted name: (type, field)}`."""
  return {name: (kind, field) for name, kind, field in settings()}


def _checked_all(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Checks values, converts them to their settings' types, maps old names."""
  known = known_settings()
  flat = {current_name(name): value for name, value in flat.items()}
  return {name: _checked(name, *known[name], v) for name, v in flat.items()}


def current_name(name: str) -> str:
  """Current name of a setting; prints a line to stderr if it was renamed.

  Args:
    name: dotted name in this or an older version.

  Raises:
    UserError: the setting does not exist or was removed.
  """
  if name in known_settings():
    return name
  if name not in RENAMED:
    raise UserError(_no_such(name))
  _tell_renamed(name)
  return RENAMED[name]


@functools.cache  # printed once per process
def _tell_renamed(name: str) -> None:
  print(f'craft: setting {name} is now {RENAMED[name]}', file=sys.stderr)


def _no_such(name: str, shown: str = '') -> str:
  """Error message for a dotted name that is no setting, with the remedy.

  Args:
    name: dotted name.
    shown: the name as the user wrote it, if that differs.
  """
  if name in REMOVED:
    return f'there is no setting {name} any more; {REMOVED[name]}'
  if name in RENAMED:
    return f'setting {name} is now {RENAMED[name]}'
  return f'unknown setting {shown or repr(name)}{hint(name, known_settings())}'


def plain(value: Any) -> Any:
  """Converts a NumPy scalar or string to Python's type; keeps other values."""
  if isinstance(value, bool):
    return value
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    return float(value)
  if isinstance(value, str):
    return str(value)
  if type(value).__module__ == 'numpy' and type(value).__name__[:4] == 'bool':
    return bool(value)
  return value


def _checked(name: str, kind: Any, field: dataclasses.Field, value: Any) -> Any:
  """Converts a value to its setting's type and checks choices and bounds."""
  value = plain(value)
  if kind is float and type(value) is int:
    value = float(value)
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (tuple, list)) or not all(
      isinstance(v, str) for v in value
    ):
      raise UserError(
        f"{name}={value!r} must be a list of names: \"('a','b')\""
      )
    _check_choices(name, value, field.metadata['choices'])
    return tuple(value)
  if type(value) is not kind:
    raise UserError(f'{name}={value!r} must be of type {kind.__name__}')
  meta = field.metadata
  _check_choices(name, [value], meta['choices'])
  if kind is float and not math.isfinite(value):
    raise UserError(f'{name}={value} must be finite')
  if meta['low'] is not None and value < meta['low']:
    raise UserError(f'{name}={value} must be at least {meta["low"]}')
  if meta['high'] is not None and value > meta['high']:
    raise UserError(f'{name}={value} must be at most {meta["high"]}')
  return value


def _check_choices(
  name: str, values: Iterable[Any], choices: tuple[str, ...]
) -> None:
  for value in values:
    if choices and value not in choices:
      raise UserError(
        f'{name}={value!r} must be one of {", ".join(choices)}'
        + hint(value, choices)
      )


# --- ConfigDict, files and flags --------------------------------------------


def default_config() -> 'ml_collections.ConfigDict':
  """A locked `ConfigDict` of all defaults, for config files to change."""
  from ml_collections import config_dict

  from craft_jax.config import provenance

  config = config_dict.ConfigDict(dataclasses.asdict(Config()))
  return provenance.note(config).lock()


@dataclasses.dataclass(frozen=True)
class Resolved:
  """The settings of a config file with flags, and all errors in them.

  Attributes:
    cfg: the settings; an invalid value is replaced by its default.
    origins: origin of each value by dotted name: `default`, `flag`, or the
      file and line that set it, such as `configs/base.py:36`.
    problems: one line for each error: invalid values, then settings that
      conflict.
  """

  cfg: Config
  origins: Mapping[str, str]
  problems: tuple[str, ...]


def load_config(spec: str, overrides: Iterable[str] = ()) -> Config:
  """Loads a config, applies overrides and checks the result.

  Args:
    spec: `PATH_OR_NAME[:VARIANT]`, a config file or the name of a shipped one.
    overrides: strings such as `model.width=256`.

  Raises:
    UserError: the file does not exist, or a setting is unknown or invalid.
  """
  found = resolve(spec, overrides)
  for problem in found.problems:
    raise UserError(problem)
  return found.cfg


def resolve(spec: str, overrides: Iterable[str] = ()) -> Resolved:
  """Loads a config, applies overrides and collects all errors in settings.

  Raises:
    UserError: the file does not exist or fails when it is run.
  """
  base, _, variant = spec.partition(':')
  path = _config_path(base)
  given, lines = _run_file(path, variant)
  known = known_settings()
  flat: dict[str, Any] = {}
  problems = []
  origins = dict.fromkeys(known, 'default')
  for name in sorted(given, key=[*known, *given].index):  # declaration order
    value = given[name]
    line = f':{lines[name]}' if name in lines else ''
    try:
      # A renamed setting gets its new name, a list becomes a tuple.
      ((name, value),) = _checked_all({name: value}).items()
      flat[name] = value
    except UserError as e:
      problems.append(f'{path}{line}: {e}')
    if line or (name in known and value != known[name][1].default):
      origins[name] = f'{_shown(path)}{line}'
  for item in overrides:
    try:
      changed = _checked_all(parse_overrides([item]))
    except UserError as e:
      problems.append(str(e))
    else:
      flat |= changed
      origins |= dict.fromkeys(changed, 'flag')
  warmup = 'optim.warmup_steps'
  shipped = path.parent == config_dir() and origins[warmup] != 'flag'
  if shipped or origins[warmup] == 'default':
    fits = fitting_warmup(unflatten(flat))
    if fits < flat.get(warmup, known[warmup][1].default):
      flat[warmup] = fits
      origins[warmup] += ', shortened to fit train.steps'
  cfg = unflatten(flat)
  return Resolved(cfg, origins, (*problems, *clashes(cfg)))


def _shown(path: pathlib.Path) -> str:
  """The path for messages; `configs/NAME.py` for a shipped config."""
  if path.parent == config_dir():
    return f'configs/{path.name}'
  return path.as_posix()


def _config_path(base: str) -> pathlib.Path:
  path = pathlib.Path(base).expanduser()
  if path.is_file():
    return path
  shipped = {p.stem: p for p in sorted(config_dir().glob('*.py'))}
  shipped.pop('__init__', None)
  in_configs = path.suffix in ('', '.py') and str(path.parent) in (
    '.',
    'configs',
  )
  if in_configs and path.stem in shipped:
    return shipped[path.stem]
  raise UserError(
    f'no config file {base!r}{hint(path.stem, shipped)}; give a path or '
    f'one of: {", ".join(shipped)}'
  )


def _run_file(
  path: pathlib.Path, variant: str
) -> tuple[dict[str, Any], dict[str, int]]:
  """Values that a config file sets, and the lines that set them, by name.

  A file that begins with `{` or ends in `.json` is a saved config; any other
  is Python.
  """
  from craft_jax.config import provenance

  try:
    data = path.read_bytes()
    if data.lstrip().startswith(b'{') or path.suffix == '.json':
      if variant:
        raise UserError(f'a saved config has no variants, such as {variant!r}')
      return _from_json(data), {}
    config = _called(provenance.run_file(path, data).get('get_config'), variant)
    return _flat(config), provenance.lines_in(str(path), config)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
  except (Exception, SystemExit) as e:  # the user's code may raise anything
    name = provenance.unknown_key(e)
    if name is not None:
      what = _no_such(name, repr(name.rpartition('.')[2]))
    else:
      what = _one_line(e)
    raise UserError(f'{path}{_line_in(path, e)}: {what}') from e


def _called(get_config: Any, variant: str) -> Any:
  """Calls the `get_config` of a config file.

  Raises:
    UserError: it is missing, takes other arguments, or returns no config.
  """
  from ml_collections import config_dict

  if not callable(get_config):
    raise UserError('it does not define get_config(variant)')
  given = (variant,) if variant else ()
  takes = inspect.signature(get_config)
  try:
    takes.bind(*given)
  except TypeError as e:
    if variant and not takes.parameters:
      raise UserError(f'it has no variants, such as {variant!r}') from e
    raise UserError(
      f'get_config{takes} cannot be called with {given}; let it take '
      "(variant='')"
    ) from e
  config = get_config(*given)
  if config is None:
    raise UserError('get_config returns nothing; end it with `return config`')
  if isinstance(config, config_dict.ConfigDict):
    return config
  if isinstance(config, dict):
    return config_dict.ConfigDict(config)
  raise UserError(
    f'get_config returns {type(config).__name__}, not a config; end it with '
    '`return config`'
  )


def _line_in(path: pathlib.Path, error: BaseException) -> str:
  """`, line 3`: the innermost line of the file in the error's traceback."""
  if isinstance(error, SyntaxError) and error.filename == str(path):
    return f', line {error.lineno}'
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if f.filename == str(path)]
  return f', line {lines[-1]}' if lines else ''


def _one_line(error: BaseException) -> str:
  """Type and message of an error, such as `NameError: ...`, as one line."""
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  return ': '.join(filter(None, [type(error).__name__, ' '.join(text.split())]))


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
  """Parses `['model.width=256']` to `{'model.width': 256}` by setting type."""
  known = known_settings()
  flat: dict[str, Any] = {}
  for item in overrides:
    name, equals, text = item.partition('=')
    name = current_name(name)
    if not equals:
      raise UserError(f'--config.{name} needs a value: --config.{name}=...')
    flat[name] = _parse(name, known[name][0], text)
  return flat


def _parse(name: str, kind: Any, text: str) -> Any:
  if kind is str:
    return text
  if kind is bool:
    words = {'true': True, '1': True, 'false': False, '0': False}
    if text.lower() not in words:
      raise UserError(f'{name}={text} must be true or false')
    return words[text.lower()]
  if typing.get_origin(kind) is tuple:
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = tuple(part.strip() for part in text.split(',') if part.strip())
    return (value,) if isinstance(value, str) else value
  try:
    # int('1_000') and int('1e3') should both work; 1.5 must not become 1.
    number = float(text)
    return (
      int(text)
      if kind is int and 'e' not in text.lower()
      else (number if kind is float else _whole(number))
    )
  except (ValueError, OverflowError):
    raise UserError(f'{name}={text} must be of type {kind.__name__}') from None


def _whole(number: float) -> int:
  if number != int(number):
    raise ValueError
  return int(number)


# --- serialization -----------------------------------------------------------


def to_json(cfg: Config) -> str:
  """Serializes a config to indented JSON."""
  return json.dumps(dataclasses.asdict(cfg), indent=2, allow_nan=False)


def from_json(text: str | bytes) -> Config:
  """Parses the output of `to_json`.

  Raises:
    UserError: the text is no saved config, or has unknown or invalid settings.
  """
  return unflatten(_from_json(text))


def _from_json(text: str | bytes) -> dict[str, Any]:
  try:
    tree = json.loads(text)
  except ValueError as e:
    raise UserError(f'it is not valid JSON: {one_line(e)}') from e
  if not isinstance(tree, dict):
    raise UserError(
      f'it is a {type(tree).__name__}; a saved config is a JSON object'
    )
  return _flat(tree)


def _flat(tree: Any) -> dict[str, Any]:
  """Flattens a mapping of sections to `{dotted name: value}`."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if hasattr(value, 'items'):
      flat |= {f'{key}.{k}': v for k, v in value.items()}
    else:
      flat[str(key)] = value
  return flat


def identity_changes(old: Config, new: Config) -> list[str]:
  """Changed settings that a resumed run must keep, as `name: old -> new`."""
  before, after = flatten(old), flatten(new)
  return [
    f'{name}: {before[name]!r} -> {after[name]!r}'
    for name, _, field in settings()
    if not field.metadata['free'] and before[name] != after[name]
  ]


# --- what relates settings to a text and to devices --------------------------


def fitting_warmup(cfg: Config) -> int:
  """Warm-up steps, shortened if the run has fewer steps than they need."""
  o, steps = cfg.optim, cfg.train.steps
  warmup = o.warmup_steps if o.warmup_steps < steps else steps // 10
  return max(0, min(warmup, steps - o.decay_steps))


def check_corpus(cfg: Config, sizes: Mapping[str, int]) -> None:
  """Raises a `UserError` of all splits that do not hold one window.

  Args:
    cfg: the settings.
    sizes: tokens per split, e.g. `{'train': 1_003_854, 'valid': 111_540}`.
  """
  problems = []
  for name, size in sizes.items():
    need = cfg.model.context + 1 if name == 'train' else 2
    if size < 2:  # too short for any context
      larger = (
        f' or raise data.{name}_fraction'
        if name != 'train' and cfg.data.split == 'fraction'
        else ''
      )
      problems.append(
        f'the {name} split has {size} tokens, and there is nothing to predict '
        f'in fewer than 2; give more text{larger}'
      )
    elif size < need:
      problems.append(
        f'the {name} split has {size} tokens, fewer than the {need} that '
        f'model.context={cfg.model.context} needs; give more text or lower '
        'model.context'
      )
  if problems:
    raise UserError('; '.join(problems))


def check_devices(cfg: Config, num_devices: int) -> dict[str, int]:
  """The mesh axis sizes on `num_devices`, in order data, fsdp, tensor.

  Raises:
    UserError: the product of the axes is not the number of devices, or a batch
      size is not divisible by `mesh.data` x `mesh.fsdp`.
  """
  axes = dataclasses.asdict(cfg.mesh)
  axes.pop('cpu_devices')
  given = math.prod(size for size in axes.values() if size > 0)
  text = ', '.join(f'mesh.{name}={size}' for name, size in axes.items())
  if num_devices % given:
    raise UserError(
      f'{text} do not divide {num_devices} devices; change the mesh or '
      'mesh.cpu_devices'
    )
  axes = {n: num_devices // given if s == -1 else s for n, s in axes.items()}
  if math.prod(axes.values()) != num_devices:
    raise UserError(
      f'{text} use {math.prod(axes.values())} of {num_devices} devices; set '
      'one of them to -1'
    )
  shards = axes['data'] * axes['fsdp']
  batches = {
    'train.batch_size / train.accumulate': cfg.train.batch_size
    // cfg.train.accumulate,
    'eval.batch_size': cfg.eval.batch_size,
  }
  problems = [
    f'{name} = {size} does not divide over {shards} devices '
    f'(mesh.data x mesh.fsdp); use a multiple of {shards}'
    for name, size in batches.items()
    if size % shards
  ]
  if problems:
    raise UserError('; '.join(problems))
  return axes
