"""Kinds of values: of what type they are, as JSON and as text."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from craft_jax.config.load import plain
from craft_jax.errors import UserError, one_line
from craft_jax.runtime import strict_json


class Kind(NamedTuple):
  """A kind of value.

  Attributes:
    says: what it is, for errors.
    check: a value as JSON or Python gives it; ValueError if it is not one.
    parse: the same of text, as a flag gives it.
    many: whether a flag takes several.
    read: as `parse`, of all that follows `:set NAME`; None is `parse`.
  """

  says: str
  check: Callable[[Any], Any]
  parse: Callable[[str], Any]
  many: bool = False
  read: Callable[[str], Any] | None = None


def _integer(value: Any) -> int:
  value = plain(value)
  if isinstance(value, bool) or not isinstance(value, int):
    raise ValueError
  return value


def _number(value: Any) -> float:
  value = plain(value)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError
  try:
    return float(value)
  except OverflowError as e:
    raise ValueError from e


def _switch(value: Any) -> bool:
  value = plain(value)
  if not isinstance(value, bool):
    raise ValueError
  return value


_SWITCHES = {'true': True, 'on': True, 'false': False, 'off': False}


def _parse_switch(text: str) -> bool:
  if text not in _SWITCHES:
    raise ValueError
  return _SWITCHES[text]


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError
  return value


def _prompt(value: Any) -> str | bytes:
  if not isinstance(value, str | bytes):
    raise ValueError
  return value


def _texts(value: Any) -> tuple[str, ...]:
  if isinstance(value, str):
    value = [value]
  if not isinstance(value, list | tuple) or not all(
    isinstance(text, str) for text in value
  ):
    raise ValueError
  return tuple(value)


def _parse_texts(text: str) -> Any:
  """Several as JSON, or the one text."""
  try:
    found = strict_json.loads(text)
  except (ValueError, RecursionError):
    return text
  return found if isinstance(found, list | dict) else text


def _biases(value: Any) -> dict[str, float]:
  """Of each character; from a mapping, or from texts `C=X`."""
  if isinstance(value, Mapping):
    found = {str(char): _number(bias) for char, bias in value.items()}
  else:
    # The character may be an equals sign.
    items = _texts(value)
    if not all(item[1:2] == '=' for item in items):
      raise ValueError
    found = {item[0]: float(item[2:]) for item in items}
  if not all(len(char) == 1 for char in found):
    raise ValueError
  return found


def _schema(value: Any) -> Any:
  if not isinstance(value, dict | bool):
    raise ValueError
  return value


def _read_schema(path: str) -> Any:
  try:
    with open(path, 'rb') as f:
      return strict_json.loads(f.read())
  except ValueError as e:
    raise UserError(f'{path} is not JSON: {one_line(e)}') from e


KINDS: dict[str, Kind] = {
  'integer': Kind('a whole number', _integer, int),
  'number': Kind('a number', _number, float),
  'switch': Kind('true or false', _switch, _parse_switch),
  'text': Kind('a text', _text, str),
  'prompt': Kind('a text', _prompt, str),
  'texts': Kind(
    'a text or a list of texts', _texts, str, many=True, read=_parse_texts
  ),
  'biases': Kind(
    'of characters, each with a number, like e=-2 or {"e": -2}',
    _biases,
    str,
    many=True,
    read=_parse_texts,
  ),
  'schema': Kind('a JSON schema', _schema, _read_schema),
}
