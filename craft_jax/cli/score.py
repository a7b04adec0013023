"""Score given text under a trained model: nats and bits per character.

Texts come from --text, from files, or from what is piped in, to the last byte:
nothing is stripped or cleaned. Each starts like a document, and each token is
predicted from at least the context less the stride, where the text has that
much before it. --dynamic and --cache add figures of a model that adapts to each
text as it reads it; --heat and --html then show the last of those.

examples:
  craft score --workdir=runs/first --text='def f(x):' --heat
  craft score --workdir=runs/first --file=a.txt --file=b.txt --json
  git show | craft score --workdir=runs/first --html=surprise.html
"""

import argparse
import sys
from typing import Any

from craft_jax.cli import adaptive, trained_flags
from craft_jax.cli import parser as parser_lib
from craft_jax.errors import UserError
from craft_jax.runtime import files, strict_json
from craft_jax.runtime.terminal import drawing

SUMMARY = 'score given text under a trained model'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft score`."""
  trained_flags.add_arguments(parser)
  trained_flags.add_weights(parser)
  flag = parser_lib.group(parser, 'what is scored').add_argument
  flag(
    '--text',
    action='append',
    default=[],
    metavar='TEXT',
    help='a text; may be given several times (default: what is piped in)',
  )
  flag(
    '--file',
    action='append',
    default=[],
    metavar='FILE',
    help='a file, one text; may be given several times; - is standard input',
  )
  flag(
    '--stride',
    type=int,
    default=0,
    metavar='N',
    help='new tokens per window (default: half of the context)',
  )
  flag = parser_lib.group(parser, 'output').add_argument
  flag(
    '--heat',
    action='store_true',
    help='print the texts coloured by surprisal; with digits where there are '
    'no colours',
  )
  flag(
    '--html',
    metavar='FILE',
    help='write a page of the texts coloured by surprisal',
  )
  flag(
    '--json',
    action='store_true',
    help='print the figures as one JSON object, last on standard output',
  )
  flag(
    '--per-char',
    action='store_true',
    help='with --json: each character, its byte offset and its nats too',
  )
  adaptive.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Scores and prints."""
  if args.per_char and not args.json:
    raise UserError('--per-char is a part of --json; give both')
  if args.html:
    files.check_output(args.html, '--html', *args.file)
  adaptation = adaptive.adaptation(args)
  texts = _texts(args)

  from craft_jax.inference.load import load_model
  from craft_jax.inference.score import stride_of
  from craft_jax.inference.surprisal import score_texts

  trained = load_model(args.workdir, args.step, not args.no_ema, args.weights)
  context = trained.cfg.model.context
  if not 0 <= args.stride <= context:
    raise UserError(
      f'--stride={args.stride} must be from 1 to model.context={context}, or '
      '0 for half of it'
    )
  results = score_texts(
    trained,
    texts,
    stride=args.stride,
    each=bool(args.per_char or args.heat or args.html),
    adaptation=adaptation,
    cache=args.cache,
  )
  stride = stride_of(args.stride, context)
  title = (
    f'{args.workdir}, step {trained.meta.step}, windows of {context} that '
    f'advance by {stride}'
  )
  print(f'{title}:')
  for result in results:
    print('\n'.join([f'{result.figures["name"]}:', *_lines(result)]))
    if args.heat:
      _show(result)
  if args.html:
    _write_page(args.html, title, results)
  if args.json:
    head = {'step': trained.meta.step, 'context': context, 'stride': stride}
    _print_json(head, results, args.per_char)
  return 0


def _texts(args: argparse.Namespace) -> list[tuple[str, bytes]]:
  """The name and the bytes of each text: --text, then --file, or the pipe."""
  from craft_jax.data.text import utf8

  found = [
    (f'text {i}' if len(args.text) > 1 else 'text', utf8.to_bytes(text))
    for i, text in enumerate(args.text, 1)
  ]
  found += [
    _piped() if path == '-' else (path, _read(path)) for path in args.file
  ]
  if found:
    return found
  if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
    raise UserError('nothing to score; give --text, --file or pipe a text in')
  return [_piped()]


def _read(path: str) -> bytes:
  with open(path, 'rb') as f:
    return f.read()


def _piped() -> tuple[str, bytes]:
  return 'standard input', sys.stdin.buffer.read()


def _lines(result: Any) -> list[str]:
  """The figures of a text for people."""
  from craft_jax.inference import metrics

  figures = result.figures
  return [
    f'{figures["characters"]:,} characters, {figures["bytes"]:,} bytes',
    f'{figures["nats"]:.4f} nats in all',
    *metrics.lines(figures),
    *adaptive.lines(figures),
  ]


def _heat(result: Any) -> Any:
  """What is coloured: the last scores, those that adapt most."""
  from craft_jax.inference.heatmap import Heat

  name, nats = list(result.nats.items())[-1]
  _, _, adapts = name.partition('_')
  notes = [*_lines(result), f'coloured by {adapts or "the static model"}']
  return Heat(result.figures['name'], result.characters, nats, notes)


def _show(result: Any) -> None:
  """Prints a text coloured, or marked where there are no colours."""
  import rich.console

  from craft_jax.inference import heatmap

  shown = _heat(result)
  print(shown.notes[-1])
  console = rich.console.Console(
    file=drawing(sys.stdout), highlight=False, soft_wrap=True
  )
  if console.is_terminal and console.color_system and not console.no_color:
    console.print(heatmap.coloured_legend())
    for line in heatmap.coloured(shown.text, shown.nats):
      console.print(line)
    return
  print('a digit is the bits of the character above it, 9 being 9 and more:')
  for row in heatmap.marked(shown.text, shown.nats):
    print(row)


def _write_page(path: str, title: str, results: list[Any]) -> None:
  """Writes the page, whole or not at all."""
  from craft_jax.inference import heatmap

  files.write_atomic(
    path, heatmap.page(title, [_heat(result) for result in results])
  )
  print(f'wrote {path}')


def _print_json(
  head: dict[str, Any], results: list[Any], per_char: bool
) -> None:
  """Prints the one object."""
  from craft_jax.runs.writers import to_json

  texts = []
  for result in results:
    shown = dict(result.figures)
    if per_char:
      # JSON has no raw bytes: what is not UTF-8 is U+FFFD, its offset tells.
      text = [
        '\ufffd' if '\udc80' <= character <= '\udcff' else character
        for character in result.characters
      ]
      shown['per_char'] = {
        'characters': text,
        'offsets': result.offsets,
        **result.nats,
      }
    texts.append(shown)
  print(strict_json.dumps(to_json(head | {'texts': texts})))
