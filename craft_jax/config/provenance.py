"""Records the source line that sets each value of a `ConfigDict`."""

import sys
import traceback
from typing import Any

from ml_collections.config_dict import ConfigDict

# (file, line) of each stack frame, the innermost first.
_Stack = tuple[tuple[str, int], ...]


class _Fields(dict):
  """Storage of a `ConfigDict` that records the call stack of assignments.

  A copy or a pickle of it is a plain `dict`.

  Attributes:
    prefix: prefix of the dotted names, such as `model.`.
    stacks: call stack of the last assignment, by key.
  """

  def __init__(self, values: dict[str, Any], prefix: str):
    super().__init__(values)
    self.prefix = prefix
    self.stacks: dict[str, _Stack] = {}

  def __setitem__(self, key: Any, value: Any) -> None:
    super().__setitem__(key, value)
    self.stacks[key] = _stack()
    if isinstance(value, ConfigDict) and not isinstance(value._fields, _Fields):
      note(value, f'{self.prefix}{key}.')

  def __reduce__(self) -> Any:
    return dict, (dict(self),)


def note(config: ConfigDict, prefix: str = '') -> ConfigDict:
  """Makes a config record its assignments from now on; returns it."""
  # Replacing the storage keeps the class, so that assignment, copies and
  # comparison work as with any `ConfigDict`.
  object.__setattr__(config, '_fields', _Fields(config._fields, prefix))
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      note(value, f'{prefix}{key}.')
  return config


def lines_in(path: str, config: Any) -> dict[str, int]:
  """Line of a file that last set each value, by dotted name.

  Values that the file did not set are left out. If the file calls a function
  that sets values, it is the line of the call.
  """
  found: dict[str, int] = {}
  stacks = getattr(getattr(config, '_fields', None), 'stacks', {})
  for key, value in config.items():
    lines = [line for file, line in stacks.get(key, ()) if file == path]
    if isinstance(value, ConfigDict):
      # Assigning a section sets all its values, until one is set again.
      found |= {f'{key}.{k}': line for k in value for line in lines[:1]}
      found |= {f'{key}.{k}': v for k, v in lines_in(path, value).items()}
    elif lines:
      found[key] = lines[0]
  return found


def unknown_key(error: BaseException) -> str | None:
  """Dotted name whose lookup in a recording config raised the error.

  None for any other error, including those of the user's own objects.
  """
  if not isinstance(error, (AttributeError, KeyError)):
    return None
  *_, (frame, _) = traceback.walk_tb(error.__traceback__)
  names = frame.f_locals
  config = names.get('self')
  fields = getattr(config, '_fields', None)
  if not isinstance(config, ConfigDict) or not isinstance(fields, _Fields):
    return None
  key = names.get('attribute', names.get('key'))
  return None if key in fields else f'{fields.prefix}{key}'


def _stack() -> _Stack:
  found = []
  frame = sys._getframe(2)
  while frame is not None:
    found.append((frame.f_code.co_filename, frame.f_lineno))
    frame = frame.f_back  # type: ignore[assignment]
  return tuple(found)
