"""An interactive prompt for text generation."""

import contextlib
import sys
from typing import Any

from craft_jax.errors import UserError
from craft_jax.inference.load import Trained
from craft_jax.inference.sampling import request as request_lib
from craft_jax.inference.sampling.answers import Answers, prepare
from craft_jax.inference.sampling.generate import decoding_params
from craft_jax.inference.sampling.request import Request
from craft_jax.inference.sampling.speculation import Drafts
from craft_jax.types import Params

_HELP = """\
Any other line is a prompt; \\n in it is a newline, \\\\ a backslash.
  :set NAME VALUE   like the flag --NAME=VALUE; without VALUE, the initial one;
                    lists as JSON, such as :set choices ["yes", "no"]
  :show             show the current values
  :help             show this help
  :quit             quit (or Ctrl-D); Ctrl-C stops the current text"""
# Fields of a request that cannot be set in this loop.
_NOT_HERE = ('prompt', 'logprobs', 'echo')


def loop(trained: Trained, request: Request, drafts: Drafts) -> int:
  """Reads prompts and generates texts until end of input; returns 0.

  Args:
    trained: the model.
    request: initial values of the options.
    drafts: method of speculative decoding.
  """
  with contextlib.suppress(ImportError):  # line editing and history
    import readline  # noqa: F401

  usual = request
  params = decoding_params(trained.model, trained.params)
  print(f'step {trained.meta.step}; type a prompt, or :help')
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
  """Replaces `\\n` by a newline and `\\\\` by a backslash."""
  return '\\'.join(part.replace('\\n', '\n') for part in line.split('\\\\'))


def _command(words: list[str], request: Request, usual: Request) -> Request:
  """Runs a command that begins with a colon; returns the new options."""
  command, *rest = words
  if command == ':set' and rest:
    name = request_lib.field_name(rest[0])
    if name in _NOT_HERE:
      raise UserError(f'{name} cannot be set here; see :help')
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
    raise UserError(f'unknown command {" ".join(words)!r}; see :help')
  return request


def _answer(
  trained: Trained, params: Params, request: Request, drafts: Drafts
) -> None:
  """Generates and prints the texts, each after its prompt."""
  from craft_jax.cli.writers import WRITERS, Stdout

  answers: Any = Answers(trained, [prepare(trained, request)], params, drafts)
  several = request.num_samples > 1
  write = WRITERS['text'](Stdout(), several, trained.vocabulary)
  for _ in answers:
    write.update(answers.samples())
  sys.stdout.flush()
