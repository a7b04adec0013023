"""Prepare a corpus, or show its statistics.

examples:
  craft data stats --config=text --config.data.path=my.txt
  craft data prepare --config=base
"""

import argparse
import time

from craft_jax.config.load import load_config
from craft_jax.runtime import strict_json

SUMMARY = 'prepare a corpus, or show its statistics'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the two subcommands and their flags."""
  commands = parser.add_subparsers(dest='action', required=True)
  for name, text, examples in (
    (
      'stats',
      'sizes, tokens, frequent and rare characters, cleaning report',
      'craft data stats\n'
      'craft data stats --config=text --config.data.path=my.txt --top=20',
    ),
    (
      'prepare',
      'write the token arrays, which training reuses',
      'craft data prepare --config=base\n'
      'craft data prepare --config=text --config.data.path=my.txt --json',
    ),
  ):
    command = commands.add_parser(
      name,
      help=text,
      description=f'{text[0].upper()}{text[1:]}.\n\nexamples:\n{examples}',
    )
    command.add_argument(
      '--config',
      default='base',
      help='config file or name of a shipped one, with :variant',
    )
    command.add_argument(
      '--json', action='store_true', help='print one JSON object at the end'
    )
    if name == 'stats':
      command.add_argument(
        '--top',
        type=int,
        default=10,
        help='number of frequent and rare characters to list',
      )


def run(args: argparse.Namespace) -> int:
  """Prepares the corpus of the config and prints its statistics."""
  from craft_jax.data import prepare, stats

  begin = time.perf_counter()
  corpus = prepare.open_corpus(load_config(args.config, args.overrides))
  seconds = time.perf_counter() - begin
  if args.action == 'stats':
    facts = stats.facts_of(corpus, max(args.top, 0))
    lines = stats.lines_of(facts)
  else:
    facts = stats.facts_of(corpus, 0) | {'seconds': seconds}
    done = 'reused' if corpus.reused else 'written'
    lines = [
      corpus.summary,
      f'{done} in {seconds:.2f} s: {corpus.folder}',
      *(f'note: {note}' for note in corpus.notes),
      *(f'warning: {warning}' for warning in corpus.warnings),
    ]
  print('\n'.join(lines))
  if args.json:
    print(strict_json.dumps(facts))
  return 0
