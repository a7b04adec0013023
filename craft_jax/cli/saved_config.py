"""Saved configs of runs, and the origins of their values."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from craft_jax.cli.parser import split_overrides
from craft_jax.config.load import (
  Resolved,
  fitting_warmup,
  flatten,
  from_json,
  load_config,
  parse_overrides,
  resolve,
  unflatten,
)
from craft_jax.config.rules import clashes
from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.runs.layout import CONFIG, METADATA
from craft_jax.runtime.files import check_place

# Settings that a new run does not take over from the run it starts from.
_OF_ONE_RUN = (
  'train.stop_at_step', 'train.extend', 'train.extended', 'train.init_from',
  'train.keep_optimizer', 'train.freeze',
)  # fmt: skip
# Whose `data` settings a new `data.path` takes, by `data.format`.
_CONFIG_OF_FORMAT = {'text': 'text', 'pairs': 'pairs'}
_NEEDED_BY_PAIRS = ('model.documents', 'eval.stride', 'log.sample_chars')
_FIELDS = (
  'data.format', 'data.prompt_field', 'data.completion_field',
  'data.group_field',
)  # fmt: skip


def load(path: str) -> Config:
  """Loads the config of a run directory, or a `config.json`.

  Raises:
    UserError: there is none, or it is damaged.
  """
  check_place(path, 'DIR')
  file = epath.Path(path)
  if file.suffix != '.json':
    file /= CONFIG
    if not file.is_file():
      raise UserError(
        f'{path} is not a run directory: it has no {CONFIG}; craft runs list '
        'shows all runs'
      )
  try:
    return from_json(file.read_text())
  except (UserError, ValueError) as e:
    raise UserError(f'{file} is not a saved config: {e}') from e


def changed(path: str, overrides: Sequence[str]) -> Config:
  """Loads the config of a run and applies overrides, to continue the run.

  The saved `train.stop_at_step` is dropped: it was meant for that start only.

  Raises:
    UserError: the config cannot be loaded, or an override is invalid.
  """
  once = {'train.stop_at_step': 0, 'train.extend': 'exact'}
  then = flatten(load(path)) | once
  return _checked(then | parse_overrides(overrides))


def adapted(parent: str, overrides: Sequence[str]) -> Config:
  """The settings of a new run from the weights of another, with its settings.

  Args:
    parent: what `--from` was given.
    overrides: `--config.` flags.

  Raises:
    UserError: no such run, or an override is refused.
  """
  from craft_jax.train import init_from

  given = parse_overrides(overrides)
  then = flatten(load(init_from.parse(parent).run))
  fresh = {name: flatten(Config())[name] for name in _OF_ONE_RUN}
  before = then['data.format']
  now = given.get('data.format', before)
  if 'data.path' in given or now != before:
    # Another text: how the old one was cut is no guide.
    path = given.get('data.path', then['data.path'])
    spec = _CONFIG_OF_FORMAT.get(now, 'text')
    usual = flatten(load_config(spec, [f'data.path={path}']))
    fresh |= {n: v for n, v in usual.items() if n.startswith('data.')}
    if now == 'pairs':
      fresh |= {name: usual[name] for name in _NEEDED_BY_PAIRS}
    if now == before == 'pairs':
      fresh |= {name: then[name] for name in _FIELDS}
  cfg = unflatten(then | fresh | given)
  fitting = {'optim.warmup_steps': fitting_warmup(cfg)}
  return _checked(then | fresh | fitting | given)


def _checked(flat: Mapping[str, Any]) -> Config:
  cfg = unflatten(flat)
  for problem in clashes(cfg):
    raise UserError(problem)
  return cfg


def resolved(path: str) -> Resolved:
  """Loads the config of a run, with origins derived from the run's command.

  If the config file has changed since and no longer gives a value, the origin
  of that value is `FILE then`.
  """
  cfg = load(path)
  command, folder = _command(path)
  flags, overrides = split_overrides(command)
  stop = _value(flags, '--stop-at-step', '')
  if stop:
    overrides.append(f'train.stop_at_step={stop}')
  parent = _value(flags, '--from', '')
  spec = f'--from={parent}' if parent else _value(flags, '--config', 'base')
  values, usual = flatten(cfg), flatten(Config())
  now, origins = {}, {}
  try:
    if parent:
      origins = dict.fromkeys(parse_overrides(overrides), 'flag')
    else:
      found = resolve(_from(folder, spec), overrides)
      now, origins = flatten(found.cfg), dict(found.origins)
  except UserError:  # the config file no longer exists
    pass
  for name, value in values.items():
    if (now and now[name] == value) or origins.get(name) == 'flag':
      continue
    if now and name == 'model.precision':
      origins[name] = 'hardware'  # `auto` was resolved
    elif value == usual[name]:
      origins[name] = 'default'
    else:
      origins[name] = spec if parent else f'{spec} then' if command else CONFIG
  return Resolved(cfg, origins, ())


def _command(path: str) -> tuple[list[str], str]:
  """Arguments of the run's last start, and the working directory of it."""
  run = epath.Path(path)
  file = (run if run.is_dir() else run.parent) / METADATA
  try:
    metadata = json.loads(file.read_text())
    return [*metadata['command'][1:]], metadata['folder']
  except (OSError, ValueError, KeyError, TypeError):
    return [], ''


def _value(flags: Sequence[str], name: str, default: str) -> str:
  """Value of a flag, after `=` or as the next word."""
  for i, flag in enumerate(flags):
    if flag.startswith(f'{name}='):
      default = flag.partition('=')[2]
    elif flag == name and i + 1 < len(flags):
      default = flags[i + 1]
  return default


def _from(folder: str, spec: str) -> str:
  """Converts a config path relative to `folder` to one relative to here."""
  base, colon, variant = spec.partition(':')
  file = os.path.join(folder, base)
  return (
    f'{os.path.relpath(file)}{colon}{variant}' if os.path.isfile(file) else spec
  )
