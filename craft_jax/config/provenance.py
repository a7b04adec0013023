"""Where each value of a `ConfigDict` was set, without another kind of one."""

import sys
import traceback
from typing import Any

from ml_collections.config_dict import ConfigDict

# (file, line) of the statements under way, the innermost first.
_Stack = tuple[tuple[str, int], ...]


class _Fields(dict):
  """The storage of a `ConfigDict`, which notes what leads to an assignment.

  Copied or pickled, it is a plain `dict`.

  Attributes:
    prefix: of the dotted names, such as `model.`.
    stacks: by key, of values set since.
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
  """The same config, whose assignments are noted from now on."""
  # In the storage: a subclass would not be assigned, copied and compared as
  # what people know.
  object.__setattr__(config, '_fields', _Fields(config._fields, prefix))
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      note(value, f'{prefix}{key}.')
  return config


def lines_in(path: str, config: Any) -> dict[str, int]:
  """The line of a file that last set each value, by dotted name.

  What the file did not set, or not in a config of `note`, is left out. Where
  the file calls a function that sets values, it is the line of the call.
  """
  found: dict[str, int] = {}
  stacks = getattr(getattr(config, '_fields', None), 'stacks', {})
  for key, value in config.items():
    lines = [line for file, line in stacks.get(key, ()) if file == path]
    if isinstance(value, ConfigDict):
      # Of a section that was assigned, this is where all of it was set first.
      found |= {f'{key}.{k}': line for k in value for line in lines[:1]}
      found |= {f'{key}.{k}': v for k, v in lines_in(path, value).items()}
    elif lines:
      found[key] = lines[0]
  return found


def unknown_key(error: BaseException) -> str | None:
  """The dotted name that a config of `note` was asked for and does not have.

  None for any other error, of the user's own objects too.
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
