"""Command-line parsing and `--help` pages."""

import argparse
import inspect
import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from craft_jax.errors import UserError, hint

# Arguments that are paths whatever their metavar is.
_PATHS = ('path', 'config', 'workdir', 'a', 'b')
_EXAMPLES = '\nexamples:\n'
_SETTINGS = (
  'settings:\n'
  '  --config.SECTION.NAME=VALUE changes a setting; may be repeated;\n'
  '  craft config docs KEY explains it'
)
# Defaults that mean that no value is given.
_NONE: tuple[Any, ...] = (None, '', [], ())


class Formatter(argparse.RawDescriptionHelpFormatter):
  """Formats help pages: usage without optional flags, defaults with flags."""

  def __init__(self, prog: str, **kwargs: Any):
    """Creates the formatter for a program name."""
    super().__init__(prog, max_help_position=28, **kwargs)

  def add_usage(
    self,
    usage: str | None,
    actions: Iterable[argparse.Action],
    groups: Any,
    prefix: str | None = None,
  ) -> None:
    """Adds the usage line: required arguments, then `[flags]`."""
    flags = argparse.Action([], 'flags', metavar='[flags]')
    needed = [a for a in actions if not a.option_strings or a.required]
    super().add_usage(usage, [*needed, flags], [], prefix)

  def _get_help_string(self, action: argparse.Action) -> str | None:
    text = action.help
    if text is None or '(default' in text or not takes_default(action):
      return text
    if action.default in _NONE:
      return f'{text} (default: none)'.lstrip()
    return f'{text} (default: %(default)s)'.lstrip()


def takes_default(action: argparse.Action) -> bool:
  """Whether an argument takes an optional value."""
  if isinstance(action, argparse._SubParsersAction) or action.nargs == 0:
    return False
  if action.option_strings:
    return not action.required
  return action.nargs in (argparse.OPTIONAL, argparse.ZERO_OR_MORE)


def is_path(action: argparse.Action) -> bool:
  """Whether the value of an argument is a file or a folder."""
  return (
    action.metavar in ('FILE', 'DIR', 'PAGE', 'FILE[:VARIANT]')
    or action.dest in _PATHS
  )


class Parser(argparse.ArgumentParser):
  """An `ArgumentParser` that reports mistakes as `UserError`.

  A description may end with `examples:` and lines of examples; these are shown
  at the end of the help page.
  """

  def __init__(self, *args: Any, description: str | None = None, **kwargs: Any):
    """Creates a parser; `description` may be a docstring."""
    text = inspect.cleandoc(description or '')
    text, _, examples = text.partition(_EXAMPLES)
    self.examples = inspect.cleandoc(examples)
    super().__init__(
      *args,
      **{
        'description': text.strip(),
        'formatter_class': Formatter,
        'allow_abbrev': False,
        **kwargs,
      },
    )

  def _print_message(self, message: str, file: Any = None) -> None:
    """Prints a page; unlike `argparse`, it does not ignore write errors."""
    if message:
      print(message, end='', file=file)

  def add_subparsers(self, **kwargs: Any) -> Any:
    """Adds subcommands under the heading `commands`."""
    return super().add_subparsers(
      **{
        'title': 'commands',
        'metavar': 'COMMAND',
        'prog': self.prog,
        'required': True,
        **kwargs,
      }
    )

  @property
  def takes_settings(self) -> bool:
    """Whether the command has a config, so that it accepts settings."""
    return any(action.dest == 'config' for action in self._actions)

  def format_help(self) -> str:
    """The help page: usage, description, flags, settings, examples."""
    parts = []
    if self.takes_settings:
      parts.append(_SETTINGS)
    if self.examples:
      lines = self.examples.replace('\n', '\n  ')
      parts.append(f'examples:\n  {lines}')
    self.epilog = '\n\n'.join(parts)
    return super().format_help()

  def parse_known_args(  # type: ignore[override]
    self, args: Any = None, namespace: Any = None
  ) -> Any:
    """Parses arguments, and stores them for error messages."""
    self._words = list(args or [])
    return super().parse_known_args(args, namespace)

  def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
    if is_path(action):  # a shell does not expand `--workdir=~/x`
      arg_string = os.path.expanduser(arg_string)
    return super()._get_value(action, arg_string)

  def _match_argument(
    self, action: argparse.Action, arg_strings_pattern: str
  ) -> int:
    try:
      return super()._match_argument(action, arg_strings_pattern)
    except argparse.ArgumentError as e:
      for flag, value in itertools.pairwise(self._words):
        if flag in action.option_strings and value.startswith('-'):
          e.message += (
            f'; a value that begins with - needs =: '
            f'{shlex.quote(f"{flag}={value}")}'
          )
          break
      raise

  def error(self, message: str) -> NoReturn:
    """Raises a `UserError` instead of exiting."""
    commands = self.commands()
    if commands and message.endswith('required: COMMAND'):
      message = f'{self.prog} needs a command: {", ".join(commands)}'
    raise UserError(f'{message}; see {self.prog} --help')

  def _check_value(self, action: argparse.Action, value: Any) -> None:
    if action.choices is None or value in action.choices:
      return
    known = [str(choice) for choice in action.choices]
    raise argparse.ArgumentError(
      action,
      f'invalid choice {value!r}{hint(str(value), known)} (choose from '
      f'{", ".join(known)})',
    )

  def commands(self) -> dict[str, 'Parser']:
    """Parsers of the subcommands, by name."""
    found: dict[str, Parser] = {}
    for action in self._actions:
      if isinstance(action, argparse._SubParsersAction):
        found |= action.choices
    return found

  def pages(self) -> 'list[Parser]':
    """This parser and all parsers of subcommands."""
    inner = [page for p in self.commands().values() for page in p.pages()]
    return [self, *inner]

  def flags(self) -> set[str]:
    """Flags of this parser and of its subcommands."""
    return {
      flag
      for page in self.pages()
      for action in page._actions
      for flag in action.option_strings
    }


def group(parser: argparse.ArgumentParser, title: str) -> Any:
  """The group of flags with a title, created on first use."""
  for found in parser._action_groups:
    if found.title == title:
      return found
  return parser.add_argument_group(title)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--config.a.b=v` and `--config.a.b v` from the other flags."""
  flags, overrides = [], []
  rest = list(argv)
  while rest:
    item = rest.pop(0)
    if not item.startswith('--config.'):
      flags.append(item)
      continue
    if '=' not in item and rest and not rest[0].startswith('--'):
      item += '=' + rest.pop(0)
    overrides.append(item.removeprefix('--config.'))
  return flags, overrides
