"""Generate text with a trained model.

Text is streamed to standard output in UTF-8. The prompt comes from --prompt, a
file or a pipe, and is used to the last byte: nothing is stripped. Without a
prompt the text starts like a document.

examples:
  craft sample --workdir=runs/first --prompt='def '
  craft sample --workdir=runs/first --num-samples=4 --temperature=0.6
  printf 'import ' | craft sample --workdir=runs/first --max-chars=200
  craft sample --workdir=runs/first --prompt='year = ' --regex='[0-9]{4}'
  craft sample --workdir=runs/first --requests=many.jsonl --output=texts.jsonl
  craft sample --workdir=runs/first --interactive
"""

import argparse
import contextlib
import select
import sys
from typing import Any

from craft_jax.cli import parser as parser_lib
from craft_jax.cli import request_file, trained_flags, writers
from craft_jax.errors import UserError
from craft_jax.inference.sampling import request as request_lib
from craft_jax.runtime import strict_json
from craft_jax.runtime.signals import Interrupts

SUMMARY = 'generate text with a trained model'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft sample`."""
  trained_flags.add_arguments(parser)
  trained_flags.add_weights(parser)
  trained_flags.add_kv_cache(parser)
  prompt = parser_lib.group(parser, 'prompt')
  source = prompt.add_mutually_exclusive_group()
  source.add_argument(
    '--prompt',
    metavar='TEXT',
    help='text to continue (default: piped input)',
  )
  source.add_argument(
    '--prompt-file',
    metavar='FILE',
    help='file to continue; - reads standard input to its end',
  )
  source.add_argument(
    '--requests',
    metavar='FILE',
    help='JSON Lines with a prompt and other values of these flags; - reads '
    'standard input',
  )
  source.add_argument(
    '--interactive',
    action='store_true',
    help='read prompts and values of these flags from a terminal',
  )
  request_lib.add_flags(parser)
  flag = parser_lib.group(parser, 'output').add_argument
  flag(
    '--format',
    choices=('text', 'jsonl'),
    help='streamed text, or one JSON object per sample (default: text; jsonl '
    'with --requests)',
  )
  flag(
    '--json',
    action='store_true',
    help='print only one JSON object: samples and throughput',
  )
  flag(
    '--output',
    metavar='FILE',
    help='write the samples to a file, atomically at the end (default: '
    'standard output)',
  )
  flag('--quiet', action='store_true', help='print no progress')
  parser_lib.group(parser, trained_flags.MODEL).add_argument(
    '--speculate',
    default='off',
    metavar='HOW',
    help='speculative decoding, which changes no text: lookup drafts what '
    'followed the same text before, a number N drafts with the first N layers '
    '(default: off)',
  )


def run(args: argparse.Namespace) -> int:
  """Generates and prints samples; returns the exit code."""
  form = args.format or ('jsonl' if args.requests else 'text')
  usual = request_lib.from_flags(args, args.prompt or '')
  _check(args, form, usual)
  lines = []
  if args.requests:
    lines = request_file.read(args.requests, usual)
  sink = None
  if args.output:
    sink = writers.File(args.output, args.requests or '')

  from craft_jax.inference.load import load_model
  from craft_jax.inference.sampling import speculation
  from craft_jax.inference.sampling.answers import Answers

  trained = load_model(
    args.workdir, args.step, not args.no_ema, args.weights, args.kv_cache
  )
  drafts = speculation.parse(args.speculate, trained.cfg.model.depth)
  if args.interactive:
    from craft_jax.cli import interactive

    return interactive.loop(trained, usual, drafts)
  if not lines:
    request = usual.changed({'prompt': _prompt(args)})
    lines = [request_file.Line('', request, None)]
  prepared = [_prepared(trained, line) for line in lines]
  answers = Answers(trained, prepared, drafts=drafts)
  return _write(args, form, trained, answers, sink)


def _check(
  args: argparse.Namespace, form: str, usual: request_lib.Request
) -> None:
  """Raises `UserError` if flags conflict."""
  if usual.logprobs is not None and form == 'text' and not args.json:
    raise UserError('--logprobs needs --format=jsonl or --json')
  if args.requests and form == 'text':
    raise UserError('--requests implies --format=jsonl; remove --format')
  if args.interactive:
    for name in ('output', 'json', 'format'):
      if getattr(args, name):
        raise UserError(f'--interactive only shows texts; remove --{name}')


def _write(
  args: argparse.Namespace,
  form: str,
  trained: Any,
  answers: Any,
  file: writers.File | None,
) -> int:
  """Writes the samples of all requests in the selected format."""
  from craft_jax.runs.progress import Progress

  total = answers.num_samples
  sink = file or writers.Stdout()
  write = writers.WRITERS[form](sink, total > 1, trained.vocabulary)
  if args.json and not file:
    write = None
  clock = writers.Clock()
  # Texts that are streamed to the terminal already show the progress.
  shows = bool(file) or args.json or not sys.stdout.isatty()
  bar = shows and total > 1 and sys.stderr.isatty() and not args.quiet
  # Signals are recorded and raised below, because an exception raised within
  # a callback of the interpreter would be lost.
  interrupts = Interrupts()
  interrupts.defer()
  watch = interrupts if file else contextlib.nullcontext()
  try:
    with watch, Progress(total, quiet=not bar) as progress:
      for _ in clock.watch(iter(answers)):
        samples = answers.samples()
        if write is not None:
          write.update(samples)
        progress.update(sum(bool(s.finish_reason) for s in samples), {})
        if interrupts.requested():
          raise KeyboardInterrupt
  except BaseException:
    # Keep the finished samples, for example after Ctrl-C.
    if file and not file.is_empty:
      file.close()
    raise
  if file:
    file.close()
  if args.json:
    objects = [s.to_json(trained.vocabulary) for s in answers.samples()]
    head = {'step': trained.meta.step, 'samples': objects}
    print(strict_json.dumps(head | clock.figures()))
  return 0


def _prepared(trained: Any, line: request_file.Line) -> Any:
  """Prepares a request; an error names its line in the file."""
  from craft_jax.inference.sampling.answers import prepare

  try:
    return prepare(trained, line.request, line.id)
  except UserError as e:
    raise UserError(f'{line.place}: {e}' if line.place else str(e)) from e


def _prompt(args: argparse.Namespace) -> str | bytes:
  """The prompt given by the flags, or else piped input."""
  if args.prompt is not None:
    return args.prompt
  if args.prompt_file == '-':
    return sys.stdin.buffer.read()
  if args.prompt_file is not None:
    with open(args.prompt_file, 'rb') as f:
      return f.read()
  if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
    return ''
  # Do not wait for a pipe that nobody writes to (a service, a CI job). Loading
  # the model took seconds, so a real writer has begun by now.
  if select.select([sys.stdin], [], [], 0)[0]:
    return sys.stdin.buffer.read()
  print(
    'craft: standard input is empty, so the prompt is empty; --prompt-file=- '
    'waits for input',
    file=sys.stderr,
  )
  return ''
