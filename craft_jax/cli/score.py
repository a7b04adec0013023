"""Score text under a trained model: nats and bits per character.

Texts come from --text, files or a pipe, and are used to the last byte: nothing
is stripped or cleaned. Each text starts like a document. Each token is
predicted from at least `context - stride` tokens, or all if there are fewer.
--dynamic and --cache add metrics of a model that adapts to each text as it
reads it; --heat and --html then show the last of these.

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

SUMMARY = 'score text under a trained model'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft score`."""
  trained_flags.add_arguments(parser)
  trained_flags.add_weights(parser)
  flag = parser_lib.group(parser, 'input').add_argument
  flag(
    '--text',
    action='append',
    default=[],
    metavar='TEXT',
    help='text to score; may be repeated (default: piped input)',
  )
  flag(
    '--file',
    action='append',
    default=[],
    metavar='FILE',
    help='file to score as one text; may be repeated; - reads standard input',
  )
  flag(
    '--stride',
    type=int,
    metavar='N',
    help='tokens by which windows advance; 0 is the context (default: half of '
    'it)',
  )
  flag = parser_lib.group(parser, 'output').add_argument
  flag(
    '--heat',
    action='store_true',
    help='print the texts coloured by surprisal, or with digits without '
    'colours',
  )
  flag(
    '--html',
    metavar='FILE',
    help='write an HTML page of the texts coloured by surprisal',
  )
  flag(
    '--json',
    action='store_true',
    help='print the metrics as one JSON object, last on standard output',
  )
  flag(
    '--per-char',
    action='store_true',
    help='with --json: add each character, its byte offset and its nats',
  )
  adaptive.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Scores the texts and prints the metrics."""
  if args.per_char and not args.json:
    raise UserError('--per-char needs --json; give both')
  if args.html:
    files.check_output(args.html, '--html', *args.file)
  adaptation = adaptive.adaptation(args)
  texts = _texts(args)

  from craft_jax.inference.load import load_model
  from craft_jax.inference.score import stride_of
  from craft_jax.inference.surprisal import score_texts

  trained = load_model(args.workdir, args.step, not args.no_ema, args.weights)
  context = trained.cfg.model.context
  stride = stride_of(args.stride, context)
  results = score_texts(
    trained,
    texts,
    stride=stride,
    each=bool(args.per_char or args.heat or args.html),
    adaptation=adaptation,
    cache=args.cache,
  )
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
  """Name and bytes of each text: --text, then --file, or else piped input."""
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
    raise UserError('nothing to score; give --text or --file, or pipe text in')
  return [_piped()]


def _read(path: str) -> bytes:
  with open(path, 'rb') as f:
    return f.read()


def _piped() -> tuple[str, bytes]:
  return 'standard input', sys.stdin.buffer.read()


def _lines(result: Any) -> list[str]:
  """Formats the metrics of a text."""
  from craft_jax.inference import metrics

  figures = result.figures
  return [
    f'{figures["characters"]:,} characters, {figures["bytes"]:,} bytes',
    f'{figures["nats"]:.4f} nats in total',
    *metrics.lines(figures),
    *adaptive.lines(figures),
  ]


def _heat(result: Any) -> Any:
  """Heat map of the last scores, which are those of the adaptive model."""
  from craft_jax.inference.heatmap import Heat

  name, nats = list(result.nats.items())[-1]
  _, _, adapts = name.partition('_')
  notes = [*_lines(result), f'coloured by {adapts or "the static model"}']
  return Heat(result.figures['name'], result.characters, nats, notes)


def _show(result: Any) -> None:
  """Prints a text in colours, or with digits if there are no colours."""
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
  print('a digit is the bits of the character above it; 9 is 9 or more:')
  for row in heatmap.marked(shown.text, shown.nats):
    print(row)


def _write_page(path: str, title: str, results: list[Any]) -> None:
  """Writes the HTML page atomically."""
  from craft_jax.inference import heatmap

  files.write_atomic(
    path, heatmap.page(title, [_heat(result) for result in results])
  )
  print(f'wrote {path}')


def _print_json(
  head: dict[str, Any], results: list[Any], per_char: bool
) -> None:
  """Prints the metrics as one JSON object."""
  from craft_jax.runs.writers import to_json

  texts = []
  for result in results:
    shown = dict(result.figures)
    if per_char:
      # JSON cannot hold raw bytes, so invalid UTF-8 becomes U+FFFD.
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
