"""Write text with a trained model.

Text goes to standard output as it is written, in UTF-8. The prompt comes from
--prompt, from a file, or from what is piped in, to the last byte: nothing is
stripped. Without a prompt the text starts like a document.

examples:
  craft sample --workdir=runs/first --prompt='def '
  craft sample --workdir=runs/first --num-samples=4 --temperature=0.6
  printf 'import ' | craft sample --workdir=runs/first --max-chars=200
  craft sample --workdir=runs/first --prompt='year = ' --regex='[0-9]{4}'
"""

import argparse
import dataclasses
import json
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

from craft_jax.cli import writers
from craft_jax.errors import UserError, one_line
from craft_jax.sample.settings import SampleSettings

SUMMARY = 'write text with a trained model'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft sample`."""
  usual = SampleSettings()
  flag = parser.add_argument
  flag('--workdir', required=True, metavar='DIR', help='the run directory')
  flag(
    '--step',
    default='latest',
    metavar='N',
    help='a step, latest or best (default: latest)',
  )
  flag(
    '--no-ema',
    action='store_true',
    help='use the raw weights of a run that averaged them',
  )
  source = parser.add_mutually_exclusive_group()
  source.add_argument('--prompt', metavar='TEXT', help='text to continue')
  source.add_argument(
    '--prompt-file',
    metavar='FILE',
    help='file to continue; - is standard input, awaited to its end',
  )
  flag(
    '--max-chars',
    type=int,
    default=400,
    metavar='N',
    help='characters to write, prompt excluded (default: 400)',
  )
  flag(
    '--num-samples',
    type=int,
    default=1,
    metavar='N',
    help='samples, written as one batch (default: 1)',
  )
  flag(
    '--temperature',
    type=float,
    default=usual.temperature,
    metavar='X',
    help=f'0 is greedy, 1 the model as trained (default: {usual.temperature})',
  )
  flag(
    '--top-k',
    type=int,
    default=usual.top_k,
    metavar='N',
    help='choose among the N most likely symbols; 0 is all (default: 0)',
  )
  flag(
    '--top-p',
    type=float,
    default=usual.top_p,
    metavar='X',
    help='choose among the most likely symbols that sum to X (default: 1)',
  )
  flag(
    '--beams',
    type=int,
    default=0,
    metavar='N',
    help='search for the likeliest texts with N beams instead of drawing; '
    'prints the best --num-samples',
  )
  flag(
    '--length-penalty',
    type=float,
    default=1.0,
    metavar='X',
    help='of beams: 0 compares probabilities, 1 their mean (default: 1)',
  )
  _add_choice(parser.add_argument_group('how symbols are chosen').add_argument)
  _add_rules(parser.add_argument_group('what may be written').add_argument)
  flag(
    '--ignore-end',
    action='store_true',
    help='never end a document: always write --max-chars',
  )
  flag(
    '--seed',
    type=int,
    default=0,
    metavar='N',
    help='the same seed writes the same text (default: 0)',
  )
  flag(
    '--format',
    choices=('text', 'jsonl'),
    default='text',
    help='text as it is written, or one JSON object per sample',
  )
  flag(
    '--json',
    action='store_true',
    help='print nothing but one JSON object: the samples and the speed',
  )


def _add_choice(flag: Callable[..., Any]) -> None:
  """The flags that change probabilities."""
  usual = SampleSettings()
  for name, meaning in (
    ('min_p', 'drop symbols less likely than X times the most likely'),
    ('typical_p', 'keep the symbols nearest the entropy that sum to X'),
    ('repetition_penalty', 'above 1 lowers symbols seen lately'),
    ('presence_penalty', 'taken from the logits of symbols seen lately'),
    ('frequency_penalty', 'the same, for each time they were seen'),
  ):
    default = getattr(usual, name)
    flag(
      f'--{name.replace("_", "-")}',
      type=float,
      default=default,
      metavar='X',
      help=f'{meaning} (default: {default:g})',
    )
  flag(
    '--penalty-window',
    type=int,
    default=usual.penalty_window,
    metavar='N',
    help='how many of the last symbols are lately, the prompt included '
    f'(default: {usual.penalty_window})',
  )
  flag(
    '--logit-bias',
    action='append',
    default=[],
    metavar='C=X',
    help='add X to the logit of the character C; may be repeated',
  )


def _add_rules(flag: Callable[..., Any]) -> None:
  """The flags that forbid."""
  for name, meaning in (
    ('regex', 'a pattern that the text matches as a whole'),
    ('json-schema', 'a file; the text is an instance of this schema'),
    ('allowed-chars', 'write these characters only'),
    ('forbidden-chars', 'never write these characters'),
  ):
    metavar = 'FILE' if name == 'json-schema' else 'TEXT'
    flag(f'--{name}', metavar=metavar, help=meaning)
  for name, meaning in (
    ('choice', 'write this text, or another --choice'),
    ('forbid', 'never write this text; may be repeated'),
    ('stop', 'end before this text; may be repeated'),
  ):
    flag(f'--{name}', action='append', default=[], metavar='TEXT', help=meaning)
  flag(
    '--min-chars',
    type=int,
    default=0,
    metavar='N',
    help='characters before which the model does not end (default: 0)',
  )
  flag(
    '--any-bytes',
    action='store_true',
    help='let a byte model write what is not UTF-8',
  )


def _settings(args: argparse.Namespace, vocabulary: Any) -> SampleSettings:
  """What the flags ask for."""
  names = {field.name for field in dataclasses.fields(SampleSettings)}
  given = {name: value for name, value in vars(args).items() if name in names}
  return SampleSettings(
    **given
    | {
      'end': not args.ignore_end,
      'stop': tuple(args.stop),
      'logit_bias': dict(_bias(item, vocabulary) for item in args.logit_bias),
      'constraint': _constraint(args, vocabulary),
      'utf8': not args.any_bytes,
    }
  )


def _bias(item: str, vocabulary: Any) -> tuple[int, float]:
  """The id and the bias of `C=X`; C may be an equals sign."""
  char, sign, number = item[:1], item[1:2], item[2:]
  try:
    bias = float(number)
  except ValueError:
    sign = ''
  if sign != '=':
    raise UserError(
      f'--logit-bias={item} must be a character, = and a number, like e=-2'
    )
  ids = vocabulary.encode(char)
  if len(ids) != 1:
    raise UserError(
      f'--logit-bias: {char!r} is {len(ids)} symbols of this model; give a '
      'character that is one'
    )
  return int(ids[0]), bias


def _constraint(args: argparse.Namespace, vocabulary: Any) -> Any:
  """Everything that is asked of the text at once; None if nothing is."""
  from craft_jax import constrain

  found = []
  if args.regex is not None:
    found.append(constrain.compile_regex(args.regex, vocabulary))
  if args.json_schema is not None:
    schema = _read_json(args.json_schema)
    found.append(constrain.compile_schema(schema, vocabulary))
  if args.choice:
    found.append(constrain.compile_choices(args.choice, vocabulary))
  if args.allowed_chars is not None:
    found.append(constrain.compile_allowed(args.allowed_chars, vocabulary))
  if args.forbidden_chars or args.forbid:
    texts = [*(args.forbidden_chars or ''), *args.forbid]
    found.append(constrain.compile_without(texts, vocabulary))
    if vocabulary.kind == 'byte' and not args.any_bytes:
      found.append(constrain.valid_utf8(vocabulary))
  if len(found) < 2:
    return found[0] if found else None
  return constrain.intersect(*found)


def _read_json(path: str) -> Any:
  try:
    with open(path, 'rb') as f:
      return json.load(f)
  except ValueError as e:
    raise UserError(f'{path} is not JSON: {one_line(e)}') from e


def run(args: argparse.Namespace) -> int:
  """Writes the samples; returns the exit code."""
  for name in ('max_chars', 'num_samples'):
    if getattr(args, name) < 1:
      flag = name.replace('_', '-')
      raise UserError(f'--{flag}={getattr(args, name)} must be at least 1')

  from craft_jax.sample.generate import encode_prompt, generate, show_prompt
  from craft_jax.trained import load_model

  _, vocabulary, model, params, meta = load_model(
    args.workdir, args.step, ema=not args.no_ema
  )
  settings = _settings(args, vocabulary)
  prompt = _prompt(args)
  ids = encode_prompt(vocabulary, prompt, meta.documents)
  # Without documents the model has never seen an end.
  end = settings.end and meta.documents
  settings = dataclasses.replace(settings, end=end)
  shown = show_prompt(vocabulary, prompt)
  clock = writers.Clock()
  number = args.num_samples
  batches: Iterator[list[Any]]
  if args.beams:
    found = _search(args, model, params, vocabulary, ids, settings)
    batches, number = iter([found]), len(found)
  else:
    batches = generate(
      model,
      params,
      vocabulary,
      [ids] * args.num_samples,
      settings,
      args.seed,
      args.max_chars,
    )
  pieces = clock.watch(batches)
  samples = writers.Samples(shown, number, args.seed)
  write = None if args.json else writers.WRITERS[args.format](samples)
  for batch in pieces:
    samples.add(batch)
    if write is not None:
      write.update()
  if args.json:
    print(
      json.dumps(
        {'step': meta.step, 'samples': samples.objects} | clock.figures()
      )
    )
  return 0


def _search(
  args: argparse.Namespace,
  model: Any,
  params: Any,
  vocabulary: Any,
  ids: Any,
  settings: SampleSettings,
) -> list[Any]:
  """The best texts of a beam search, as the pieces of one dispatch.

  There may be fewer than were asked for, where a constraint has no more.

  Raises:
    UserError: more texts are asked for than there are beams.
  """
  from craft_jax.sample.beam import beam_search
  from craft_jax.sample.generate import Piece

  if args.num_samples > args.beams:
    raise UserError(
      f'--beams={args.beams} find no {args.num_samples} texts; set '
      f'--beams={args.num_samples} or more'
    )
  found = beam_search(
    model,
    params,
    vocabulary,
    ids,
    args.beams,
    args.max_chars,
    args.length_penalty,
    settings,
  )
  return [
    Piece(i, vocabulary.decode(text.ids), text.finish_reason, text.ids)
    for i, text in enumerate(found[: args.num_samples])
  ]


def _prompt(args: argparse.Namespace) -> str | bytes:
  """The prompt, from where the flags say; what is piped in, without flags."""
  if args.prompt is not None:
    return args.prompt
  if args.prompt_file == '-':
    return sys.stdin.buffer.read()
  if args.prompt_file is not None:
    with open(args.prompt_file, 'rb') as f:
      return f.read()
  if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
    return ''
  # A pipe that nobody writes to (a service, a CI job) must not hang: the
  # model has been loading for seconds, so a writer has begun by now.
  if select.select([sys.stdin], [], [], 0)[0]:
    return sys.stdin.buffer.read()
  print(
    'craft: nothing on standard input, so the prompt is empty; '
    '--prompt-file=- waits for one',
    file=sys.stderr,
  )
  return ''
