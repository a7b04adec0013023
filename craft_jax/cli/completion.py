"""Print the script for completion of craft in a shell.

It completes commands, flags, choices, configs with their variants, settings
(--config.model.w<TAB>) and run directories.

  bash  echo 'eval "$(craft completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(craft completion zsh)"' >> ~/.zshrc  (after compinit)
  fish  craft completion fish > ~/.config/fish/completions/craft.fish

examples:
  craft completion bash
  craft completion zsh > _craft
"""

import argparse
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from craft_jax.cli import parser as parser_lib

SUMMARY = 'print the script for completion of craft in a shell'
_SETTING = '--config.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  parser.add_argument(
    'shell', choices=('bash', 'zsh', 'fish'), help='bash, zsh or fish'
  )


def run(args: argparse.Namespace) -> int:
  """Prints the script."""
  import argcomplete

  print(argcomplete.shellcode(['craft'], shell=args.shell, use_defaults=False))
  return 0


def answer(commands: Mapping[str, Callable[[], ModuleType]]) -> None:
  """Prints completions for the shell and exits.

  It runs at each press of the Tab key, so it imports only the command that is
  on the line, and never JAX.

  Args:
    commands: functions that import the module of each command.
  """
  import argcomplete

  class Finder(argcomplete.CompletionFinder):
    def collect_completions(
      self,
      active_parsers: list[Any],
      parsed_args: argparse.Namespace,
      cword_prefix: str,
    ) -> list[str]:
      page = active_parsers[-1]
      if cword_prefix.startswith(_SETTING):
        found = setting_flags(cword_prefix) if page.takes_settings else {}
      elif cword_prefix.startswith('-') and '=' not in cword_prefix:
        found = _flags(page._option_string_actions, cword_prefix)
      else:
        return super().collect_completions(
          active_parsers, parsed_args, cword_prefix
        )
      self._display_completions |= found
      return list(found)

  words = os.environ['COMP_LINE'][: int(os.environ['COMP_POINT'])].split()
  parser = _parser(commands, words[1:])
  Finder()(
    parser,
    always_complete_options=False,
    default_completer=_values,  # type: ignore[arg-type]
  )


def _parser(
  commands: Mapping[str, Callable[[], ModuleType]], words: list[str]
) -> parser_lib.Parser:
  """A parser of the whole line; only the command on it has its flags."""
  parser = parser_lib.Parser('craft')
  inner = parser.add_subparsers(required=False)
  typed = next((word for word in words if word in commands), '')
  for name, load in commands.items():
    summary = '' if typed else load().SUMMARY
    command = inner.add_parser(name, help=summary)
    if name == typed:
      load().add_arguments(command)
  help = inner.add_parser('help', help='what a command does')
  help.add_argument('name', choices=[*commands])
  if words and words[0].startswith('-'):  # flags of the default command
    commands['train']().add_arguments(parser)
  return parser


def _flags(flags: Mapping[str, argparse.Action], prefix: str) -> dict[str, str]:
  """Flags with a prefix, with `=` where a value follows, and their help."""
  found = {}
  for flag, action in flags.items():
    name = flag if action.nargs in (0, '+') else f'{flag}='
    if flag.startswith(prefix) and flag.startswith('--'):
      found[name] = (action.help or '').partition(' (default')[0]
  return found


def _values(
  prefix: str, action: argparse.Action, **_: Any
) -> Iterable[str] | Mapping[str, str]:
  """Completions for the value of a flag or argument, by its `dest`."""
  from argcomplete.completers import FilesCompleter

  if action.dest in ('config', 'a', 'b'):
    return [*_configs(), *FilesCompleter(['py', 'json'])(prefix)]
  if action.dest in ('workdir', 'dirs'):
    return _runs(prefix)
  if action.dest == 'key':
    return _names()
  if parser_lib.is_path(action):
    return FilesCompleter()(prefix)
  return []


def _configs() -> list[str]:
  from craft_jax.config import shipped

  return [spec for path in shipped.paths() for spec in shipped.specs(path)]


def _runs(prefix: str) -> Iterator[str]:
  """Run directories, and other folders, which may hold some, with a `/`."""
  from craft_jax.runs.layout import CONFIG, METADATA

  folder, _, begin = prefix.rpartition('/')
  root = folder + '/' if '/' in prefix else ''
  places = [root] if root or begin else ['', 'runs/']
  for place in places:
    for path in sorted(pathlib.Path(place).expanduser().glob('*/')):
      if (path / CONFIG).is_file() and (path / METADATA).is_file():
        yield f'{place}{path.name}'
      elif not path.name.startswith('.'):
        yield f'{place}{path.name}/'


def _names() -> dict[str, str]:
  """All sections and settings with their descriptions."""
  from craft_jax.config import describe
  from craft_jax.config import load as config_lib

  found: dict[str, str] = {}
  for name, _, field in config_lib.settings():
    section = name.rpartition('.')[0]
    if section:
      found.setdefault(section, describe.purpose(section))
    found[name] = field.metadata['doc']
  return found


def setting_flags(prefix: str) -> dict[str, str]:
  """Completions of `--config.` flags with their descriptions.

  Sections come first, then the settings of a section once it is the only
  match, then the values of a setting: its choices or else its default.

  Args:
    prefix: the word typed so far.
  """
  from craft_jax.config import load as config_lib

  known = {name: (kind, field) for name, kind, field in config_lib.settings()}
  name, equals, _ = prefix.removeprefix(_SETTING).partition('=')
  if equals:
    values = _setting_values(*known[name]) if name in known else {}
    return {
      word: meaning
      for value, meaning in values.items()
      if (word := f'{_SETTING}{name}={value}').startswith(prefix)
    }
  found = {
    n: field.metadata['doc']
    for n, (_, field) in known.items()
    if n.startswith(name)
  }
  sections = {n.rpartition('.')[0]: '' for n in found}
  if len(sections) == 1:
    return {f'{_SETTING}{n}=': doc for n, doc in found.items()}
  return {
    f'{_SETTING}{n}.' if n not in known else f'{_SETTING}{n}=': doc
    for n, doc in _names().items()
    if n in sections or (n in found and '.' not in n)
  }


def _setting_values(kind: Any, field: Any) -> dict[str, str]:
  meaning = field.metadata['doc']
  if field.metadata['choices']:
    return dict.fromkeys(field.metadata['choices'], meaning)
  if kind is bool:
    return {'true': meaning, 'false': meaning}
  if field.default in ('', ()):
    return {}
  return {str(field.default): f'the default. {meaning}'}
