"""A loop of prompts, for a person at a terminal."""

import contextlib
import sys
from typing import Any

from craft_jax.errors import UserError
from craft_jax.inference.engine.device import decoding_params
from craft_jax.inference.load import Trained
from craft_jax.inference.sampling import request as request_lib
from craft_jax.inference.sampling.answers import Answers, prepare
from craft_jax.inference.sampling.request import Request
from craft_jax.inference.sampling.speculation import Drafts
from craft_jax.types import Params

_HELP = """\
Any other line is a prompt; \\n in it is a newline, \\\\ a backslash.
  :set NAME VALUE   as the flag --NAME=VALUE; without a value, the usual one;
                    several as JSON, like :set choices ["yes", "no"]
  :show             what is set
  :help             this
  :quit             or Ctrl-D; Ctrl-C ends a text"""
# The prompt is what is typed; the rest has no meaning for texts on a terminal.
_NOT_HERE = ('prompt', 'logprobs', 'echo')


def loop(trained: Trained, request: Request, drafts: Drafts) -> int:
  """Asks for prompts until the input ends; returns the exit code.

  Args:
    trained: the model.
    request: what holds until something else is set.
    drafts: which drafts are read ahead.
  """
  with contextlib.suppress(ImportError):  # history and editing, if Python can
    import readline  # noqa: F401

  usual = request
  params = decoding_params(trained.model, trained.params)
  print(f'step {trained.meta.step}; a prompt, or :help')
  while True:
    try:
      line = input('> ')
    except KeyboardInterrupt:
      print()
      continue
    except EOFError:
      print()
      return 0
    words = line.split(maxsplit=2)
    if words[:1] == [':quit']:
      return 0
    try:
      if words and words[0].startswith(':'):
        request = _command(words, request, usual)
      else:
        asked = request.changed({'prompt': _unescaped(line)})
        _answer(trained, params, asked, drafts)
    except UserError as e:
      print(f'craft: {e}')
    except OSError as e:
      print(f'craft: {e.filename}: {e.strerror}')
    except KeyboardInterrupt:
      print()


def _unescaped(line: str) -> str:
  """With newlines for `\\n`."""
  return '\\'.join(part.replace('\\n', '\n') for part in line.split('\\\\'))


def _command(words: list[str], request: Request, usual: Request) -> Request:
  """What holds after a line that begins with a colon."""
  command, *rest = words
  if command == ':set' and rest:
    name = request_lib.field_name(rest[0])
    if name in _NOT_HERE:
      raise UserError(f'{name} has no meaning here; see :help')
    value = getattr(usual, name)
    if len(rest) > 1:
      value = request_lib.parse_value(name, rest[1])
    return request.changed({name: value})
  if command == ':show':
    for name in request_lib.OPTIONS:
      if name not in _NOT_HERE:
        print(f'  {name} = {getattr(request, name)!r}')
  elif command == ':help':
    print(_HELP)
  else:
    raise UserError(f'no command {" ".join(words)!r}; see :help')
  return request


def _answer(
  trained: Trained, params: Params, request: Request, drafts: Drafts
) -> None:
  """Writes the texts, each after its prompt."""
  from craft_jax.cli.writers import WRITERS, Stdout

  answers: Any = Answers(trained, [prepare(trained, request)], params, drafts)
  several = request.num_samples > 1
  write = WRITERS['text'](Stdout(), several, trained.vocabulary)
  for _ in answers:
    write.update(answers.samples())
  sys.stdout.flush()
