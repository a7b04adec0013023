"""A `ConfigDict` that notes where each of its values was set."""

import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

# (file, line) of the statements under way, the innermost first.
_Stack = tuple[tuple[str, int], ...]


class NotedDict(config_dict.ConfigDict):
  """Notes the statements that lead to each assignment.

  Otherwise what it inherits from; only values set after construction are
  noted.
  """

  def __init__(self, values: Mapping[str, Any]):
    """Of values, of which a `NotedDict` stands for a section."""
    object.__setattr__(self, '_stacks', {})
    super().__init__(values)
    self._stacks.clear()

  def __setitem__(self, key: Any, value: Any) -> None:
    """Sets and notes."""
    super().__setitem__(key, value)
    self._stacks[key] = _stack()


def _stack() -> _Stack:
  found = []
  frame = sys._getframe(2)
  while frame is not None:
    found.append((frame.f_code.co_filename, frame.f_lineno))
    frame = frame.f_back  # type: ignore[assignment]
  return tuple(found)


def lines_in(path: str, config: Any) -> dict[str, int]:
  """The line of a file that last set each value, by dotted name.

  What the file did not set, or not through a `NotedDict`, is left out. Where
  the file calls a function that sets values, it is the line of the call.
  """
  found = {}
  for key, stack in getattr(config, '_stacks', {}).items():
    line = next((line for file, line in stack if file == path), None)
    if line is not None:
      found[key] = line
  for key, value in config.items():
    if isinstance(value, NotedDict):
      found |= {f'{key}.{k}': v for k, v in lines_in(path, value).items()}
  return found
