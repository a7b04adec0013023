r"""Complete a file of prompts, row by row, with a trained model.

Completions are written in the order of the prompts and in the format of the
input, unless the name of the output says another: .txt has a prompt in each
line, .tsv and .csv have a header, .jsonl an object in each line; all fields of
a row are kept. A model of pairs writes the completion of each prompt, one of
text goes on to the end of the line. Decoding is greedy unless --temperature or
--n-best is given. An output that was cut short is continued by the same
command. With --references it ends with exact match, character and word error
rates, and the worst rows. In .txt a line break within a completion is written
as \n.

examples:
  craft predict --workdir=runs/first --input=prompts.txt --output=texts.txt
  craft predict --workdir=runs/first --input=a.tsv --output=b.tsv --references
  craft predict --workdir=runs/first --input=a.tsv --output=b.tsv --errors
  craft predict --workdir=runs/first --input=many.jsonl --n-best=4 --logprobs
"""

import argparse
import collections
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from craft_jax.cli import parser as parser_lib
from craft_jax.cli import predict_files, trained_flags
from craft_jax.cli.predict_files import Layout, Record
from craft_jax.errors import UserError, hint
from craft_jax.inference.sampling import request as request_lib
from craft_jax.runtime import files, strict_json, terminal
from craft_jax.runtime.signals import Interrupts

SUMMARY = 'complete a file of prompts, and measure the errors'

_NUM_EDITS = 20  # of the table of --errors
_FLUSH_SECONDS = 0.5
_STDIN = 'standard input'
# Flags of `craft sample` that mean something else here, or nothing.
_LEFT_OUT = ('prompt', 'num_samples', 'best_of', 'logprobs', 'echo')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `craft predict`."""
  trained_flags.add_arguments(parser)
  trained_flags.add_weights(parser)
  trained_flags.add_kv_cache(parser)
  flag = parser_lib.group(parser, 'prompts and completions').add_argument
  flag(
    '--input',
    default='-',
    metavar='FILE',
    help='file of prompts; - reads standard input to its end (default: -)',
  )
  flag(
    '--output',
    default='-',
    metavar='FILE',
    help='file of completions, continued if it is there; - is standard output '
    '(default: -)',
  )
  flag(
    '--format',
    choices=predict_files.FORMATS,
    help='format of the input (default: by its extension; txt for -)',
  )
  flag(
    '--prompt-field',
    metavar='NAME',
    help='column or field of the prompts (default: data.prompt_field of the '
    'run)',
  )
  flag(
    '--output-field',
    metavar='NAME',
    help='column or field of the completions (default: completion, or '
    'prediction where the input has that)',
  )
  flag(
    '--regex-field',
    metavar='NAME',
    help='column or field with a pattern for each row, instead of --regex',
  )
  flag(
    '--n-best',
    type=int,
    default=0,
    metavar='N',
    help='give the best N completions of a beam search; 0 gives one (default: '
    '0)',
  )
  flag(
    '--logprobs',
    action='store_true',
    help='add the log-probability (nats) of each completion',
  )
  flag('--quiet', action='store_true', help='print no progress')
  flag = parser_lib.group(parser, 'metrics').add_argument
  flag(
    '--references',
    nargs='?',
    const='',
    metavar='NAME',
    help='measure against this column or field; of a .txt, a file with as many '
    'lines (default: none; without a NAME, data.completion_field of the run)',
  )
  flag(
    '--worst',
    type=int,
    default=10,
    metavar='N',
    help='with --references: show the N worst rows with their alignment '
    '(default: 10)',
  )
  flag(
    '--errors',
    action='store_true',
    help='show the most frequent character edits; implies --references',
  )
  flag(
    '--json',
    action='store_true',
    help='print throughput, metrics, worst rows and edits as one JSON object',
  )
  request_lib.add_flags(
    parser,
    _LEFT_OUT,
    {
      'temperature': (0.0, '0'),
      'max_chars': (None, 'what the context holds; 400 for a model of text'),
      'stop': ([], 'none; the end of the line for a model of text'),
    },
  )


def run(args: argparse.Namespace) -> int:
  """Completes the prompts and prints the metrics."""
  _check(args)
  with contextlib.ExitStack() as stack:
    source = _open(args, stack)

    from craft_jax.inference.load import load_model
    from craft_jax.inference.predict import predictor_of

    trained = load_model(
      args.workdir, args.step, not args.no_ema, args.weights, args.kv_cache
    )
    table = _table(args, source, trained.cfg.data)
    references = _references(args, table, trained.cfg.data, stack)
    predictor = predictor_of(trained, _options(args), table.num_rows)
    for i, record in enumerate(table.records()):
      _prepare(predictor, table, i, record)
    report = _Report(args, table, references)
    kept = _kept(args, table, report)
    _check_kept(args, table, predictor, kept)
    _write(args, table, predictor, kept, report)
  report.print()
  return 0


def _check(args: argparse.Namespace) -> None:
  """Raises `UserError` if flags conflict."""
  if args.json and args.output == '-':
    raise UserError(
      '--json prints where the completions are written; give --output=FILE'
    )
  for name in ('n_best', 'worst'):
    if getattr(args, name) < 0:
      flag = name.replace('_', '-')
      raise UserError(f'--{flag}={getattr(args, name)} must be at least 0')
  if args.errors and args.references is None:
    args.references = ''
  if args.output != '-':
    files.check_local(args.output, '--output')
    files.check_output(args.output, '--output', args.input)


def _options(args: argparse.Namespace) -> dict[str, Any]:
  """The options that were given, for `request_of`."""
  found = {n: v for n, v in vars(args).items() if n in request_lib.OPTIONS}
  found = {n: v for n, v in found.items() if n not in _LEFT_OUT}
  for name in ('max_chars', 'stop', 'beams'):
    if not found[name] and found[name] != 0:
      del found[name]
  return found | {'n_best': args.n_best}


# --- the input ---------------------------------------------------------------


class _Source(NamedTuple):
  """An input that can be read several times."""

  file: BinaryIO
  name: str
  form: str


class _Table(NamedTuple):
  """The prompts, and how their completions are written.

  Attributes:
    source: the input.
    prompt: the field of the prompts.
    regex: the field of the patterns, or None.
    columns: names of the fields of the input.
    num_rows: how many prompts there are.
    layout: of the output.
  """

  source: _Source
  prompt: str
  regex: str | None
  columns: list[str]
  num_rows: int
  layout: Layout

  def records(self) -> Iterator[Record]:
    """The rows of the input, from the first."""
    return predict_files.read(*self.source, self.prompt)


def _open(args: argparse.Namespace, stack: contextlib.ExitStack) -> _Source:
  """Opens the input; a pipe is copied, so that it can be read twice."""
  form = predict_files.format_of(args.input, args.format, 'txt')
  if args.input == '-':
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
      raise UserError('nothing to complete; give --input, or pipe prompts in')
    file: BinaryIO = sys.stdin.buffer
    name = _STDIN
  else:
    file, name = stack.enter_context(open(args.input, 'rb')), args.input  # noqa: SIM115
  if not file.seekable() or args.input == '-':
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    shutil.copyfileobj(file, copy)
    file = copy
  return _Source(file, name, form)


def _table(args: argparse.Namespace, source: _Source, data: Any) -> _Table:
  """Reads the whole input once, to find its fields and its mistakes.

  Raises:
    UserError: it has no rows, or lacks a column; or the output cannot hold
      what is asked for.
  """
  prompt = args.prompt_field or data.prompt_field or 'prompt'
  names: dict[str, None] = {}
  num_rows = 0
  for record in predict_files.read(*source, prompt):
    names |= dict.fromkeys(record.fields)
    num_rows += 1
    if num_rows == 1:
      _check_columns(args, source, prompt, record)
  if not num_rows:
    raise UserError(f'{source.name} has no rows of prompts')
  columns = list(names)
  field = args.output_field
  if not field:
    field = 'prediction' if 'completion' in columns else 'completion'
  form = predict_files.format_of(
    args.output, source.form if args.output == '-' else None, source.form
  )
  more = [field]
  if args.logprobs:
    more.append('logprob')
  if args.n_best and form == 'jsonl':
    more.append('n_best')
  elif args.n_best:
    for i in range(2, args.n_best + 1):
      more += [f'{name}_{i}' for name in more if name in (field, 'logprob')]
  if form == 'txt' and len(more) > 1:
    raise UserError(
      '--n-best and --logprobs need columns; name the output .tsv or .jsonl'
      if args.output != '-'
      else '--n-best and --logprobs need columns; give --output=FILE.tsv or '
      'an input of columns'
    )
  if form != 'txt' and (taken := [n for n in more if n in columns]):
    raise UserError(
      f'the input has a field {taken[0]!r} already; '
      + (
        'give --output-field=NAME'
        if taken[0].startswith(field)
        else 'rename it there'
      )
    )
  layout = Layout(form, [*columns, *more], field)
  return _Table(source, prompt, args.regex_field, columns, num_rows, layout)


def _check_columns(
  args: argparse.Namespace, source: _Source, prompt: str, first: Record
) -> None:
  """Whether the columns that flags name are there."""
  wanted = {'--prompt-field': prompt}
  if args.regex_field:
    wanted['--regex-field'] = args.regex_field
  for flag, name in wanted.items():
    if name not in first.fields:
      raise _missing(source.name, name, first, flag)


def _missing(place: str, name: str, record: Record, flag: str) -> UserError:
  columns = ', '.join(record.fields) or 'none'
  return UserError(
    f'{place} has no column {name!r}{hint(name, record.fields)}; it has '
    f'{columns}; choose one by {flag}=NAME'
  )


def _text(record: Record, name: str, flag: str) -> str:
  """A field that has to be a text."""
  if name not in record.fields:
    raise _missing(record.place, name, record, flag)
  if not isinstance(record.fields[name], str):
    raise UserError(f'{record.place}: the field {name!r} must be a text')
  return record.fields[name]


def _prepare(predictor: Any, table: _Table, number: int, record: Record) -> Any:
  """The row of a record; an error names its place."""
  prompt = _text(record, table.prompt, '--prompt-field')
  regex = None
  if table.regex:
    regex = _text(record, table.regex, '--regex-field')
  try:
    return predictor.prepare(number, prompt, regex)
  except UserError as e:
    raise UserError(f'{record.place}: {e}') from e


# --- the references ----------------------------------------------------------


def _references(
  args: argparse.Namespace,
  table: _Table,
  data: Any,
  stack: contextlib.ExitStack,
) -> dict[str, list[str]]:
  """References of each prompt; {} where none are asked for.

  Raises:
    UserError: there are none, one is empty, or their number is another.
  """
  if args.references is None:
    return {}
  found: dict[str, list[str]] = {}
  for record, several in _reference_rows(args, table, data, stack):
    prompt = _text(record, table.prompt, '--prompt-field')
    here = found.setdefault(prompt, [])
    here += [text for text in several if text not in here]
  return found


def _reference_rows(
  args: argparse.Namespace,
  table: _Table,
  data: Any,
  stack: contextlib.ExitStack,
) -> Iterator[tuple[Record, list[str]]]:
  """The references that each row names."""
  if table.source.form != 'txt':
    name = args.references or data.completion_field
    for i, record in enumerate(table.records()):
      if name not in record.fields:
        place = record.place if i else table.source.name
        raise _missing(place, name, record, '--references')
      given = record.fields[name]
      yield record, _checked(given if isinstance(given, list) else [given],
                             record.place, name)  # fmt: skip
    return
  if not args.references:
    raise UserError(
      'a .txt has no column of references; give a file of them with as many '
      'lines: --references=FILE'
    )
  path = args.references
  if args.output != '-':
    files.check_output(args.output, '--output', path)
  if path == '-':
    raise UserError('--references=- is not read; give a file')
  file = stack.enter_context(open(path, 'rb'))  # noqa: SIM115
  both = itertools.zip_longest(
    table.records(), predict_files.read(file, path, 'txt', 'reference')
  )
  for i, (record, reference) in enumerate(both):
    if record is None or reference is None:
      number = i + sum(1 for _ in both) + 1
      long, short = table.source.name, path
      if record is None:
        long, short = short, long
      raise UserError(
        f'{long} has {number} lines, {short} only {i}; give one reference for '
        'each prompt'
      )
    text = reference.fields['reference']
    yield record, _checked([text], reference.place, 'reference')


def _checked(texts: list[Any], place: str, name: str) -> list[str]:
  """References of a row, of which there is one and none is empty."""
  if not texts or not all(isinstance(t, str) and t for t in texts):
    raise UserError(
      f'{place}: the reference {name!r} is empty or no text; leave such rows '
      'out, or measure without --references'
    )
  return texts


# --- the output --------------------------------------------------------------


class _Kept(NamedTuple):
  """What an output has from an earlier start.

  Attributes:
    rows: whole rows.
    size: bytes up to their end.
    samples: some of them, and a last one that was cut: number, input, bytes.
  """

  rows: int
  size: int
  samples: list[tuple[int, Record, bytes]]


def _kept(args: argparse.Namespace, table: _Table, report: '_Report') -> _Kept:
  """Reads an output that is there, and compares its rows with the input.

  Raises:
    UserError: it does not belong to the input.
  """
  if args.output == '-' or not os.path.exists(args.output):
    return _Kept(0, 0, [])
  layout, records = table.layout, table.records()
  rows = size = 0
  samples: list[tuple[int, Record, bytes]] = []
  with open(args.output, 'rb') as file:
    written = layout.records(file)
    if layout.header and (first := next(written, b'')):
      if not layout.header.startswith(first):
        raise _not_ours(args, 'its header is another')
      if first != layout.header:
        return _Kept(0, 0, [])
      size = len(first)
    for line in written:
      record = next(records, None)
      if record is None:
        raise _not_ours(args, f'it has more than the {table.num_rows} rows')
      if not predict_files.is_whole(line, layout.form):
        samples.append((rows, record, line))
        break
      try:
        fields = layout.decode(line)
      except ValueError:
        fields = {}
      if layout.field not in fields or (
        layout.form != 'txt' and not _is_of(fields, record, layout)
      ):
        raise _not_ours(args, f'row {rows + 1} is not that of {record.place}')
      report.add(rows, record, fields[layout.field])
      if rows == 0 or len(samples) < 2:
        samples.append((rows, record, line))
      else:
        samples[1] = rows, record, line
      rows, size = rows + 1, size + len(line)
  return _Kept(rows, size, samples)


def _is_of(fields: dict[str, Any], record: Record, layout: Layout) -> bool:
  """Whether a row of the output has what the row of the input has."""
  decoded = layout.decode(layout.encode(record.fields | {layout.field: ''}))
  return all(
    fields.get(name) == value
    for name, value in decoded.items()
    if name in record.fields
  )


def _not_ours(args: argparse.Namespace, why: str) -> UserError:
  return UserError(
    f'--output={args.output} is there and not of this input and these options: '
    f'{why}; remove it or give another name'
  )


def _check_kept(
  args: argparse.Namespace, table: _Table, predictor: Any, kept: _Kept
) -> None:
  """Completes some of the kept rows again: are they of this model?

  Raises:
    UserError: the output is of another model or of other options.
  """
  rows = [_prepare(predictor, table, i, r) for i, r, _ in kept.samples]
  for (number, record, line), several in zip(
    kept.samples, predictor.completions(rows), strict=True
  ):
    encoded = table.layout.encode(_fields(args, table, record, several))
    same = encoded.startswith(line) if number >= kept.rows else encoded == line
    if not same:
      raise _not_ours(
        args, f'row {number + 1} is not what the model writes with them'
      )


def _fields(
  args: argparse.Namespace, table: _Table, record: Record, several: list[Any]
) -> dict[str, Any]:
  """A row of the output."""
  found = dict(record.fields)
  layout = table.layout
  as_list = layout.form == 'jsonl' and args.n_best
  for i, one in enumerate(several[:1] if as_list else several, 1):
    end = f'_{i}' if i > 1 else ''
    found[layout.field + end] = one.text
    if args.logprobs:
      found[f'logprob{end}'] = round(one.logprob, 6)
  if as_list:
    found['n_best'] = [
      {'text': one.text, 'logprob': round(one.logprob, 6)} for one in several
    ]
  return found


def _write(
  args: argparse.Namespace,
  table: _Table,
  predictor: Any,
  kept: _Kept,
  report: '_Report',
) -> None:
  """Completes the rows that the output lacks, and writes them in order."""
  from craft_jax.runs.progress import Progress

  waiting: collections.deque[Record] = collections.deque()

  def rows() -> Iterator[Any]:
    todo = itertools.islice(table.records(), kept.rows, None)
    for i, record in enumerate(todo, kept.rows):
      waiting.append(record)
      yield _prepare(predictor, table, i, record)

  bar = args.output != '-' and sys.stderr.isatty() and not args.quiet
  interrupts = Interrupts()
  interrupts.defer()
  with contextlib.ExitStack() as stack:
    if args.output == '-':
      sys.stdout.flush()
      file: BinaryIO = sys.stdout.buffer
    elif kept.rows == table.num_rows and kept.size == os.path.getsize(
      args.output
    ):
      report.clock.skipped = kept.rows
      return
    else:
      exists = os.path.exists(args.output)
      file = stack.enter_context(open(args.output, 'r+b' if exists else 'xb'))
      file.truncate(kept.size)
      file.seek(kept.size)
    if not kept.size:
      file.write(table.layout.header)
    stack.callback(file.flush)
    stack.enter_context(interrupts)
    progress = stack.enter_context(Progress(table.num_rows, quiet=not bar))
    flushed = report.clock.start(kept.rows)
    for number, several in enumerate(
      predictor.completions(rows()), start=kept.rows
    ):
      record = waiting.popleft()
      fields = _fields(args, table, record, several)
      file.write(table.layout.encode(fields))
      written = fields[table.layout.field]
      if table.layout.form == 'txt':
        report.clock.breaks += written != predict_files.one_line_text(written)
        written = predict_files.one_line_text(written)
      report.add(number, record, written)
      now = report.clock.count(sum(one.num_tokens for one in several))
      if now - flushed > _FLUSH_SECONDS:
        file.flush()
        progress.update(number + 1, {})
        flushed = now
      if interrupts.requested():
        raise KeyboardInterrupt


# --- the report --------------------------------------------------------------


class _Clock:
  """Rows and tokens over time, from the first row on, which compiles.

  Attributes:
    skipped: rows that the output had.
    breaks: completions with line breaks in a format that has none.
  """

  def __init__(self) -> None:
    self.skipped = self.breaks = 0
    self._rows = self._tokens = self._first_tokens = 0
    self._first = self._last = self._begin = time.perf_counter()

  def start(self, skipped: int) -> float:
    self.skipped, self._begin = skipped, time.perf_counter()
    return self._begin

  def count(self, tokens: int) -> float:
    """Counts a row; returns the time."""
    self._last = time.perf_counter()
    if not self._rows:
      self._first, self._first_tokens = self._last, tokens
    self._rows += 1
    self._tokens += tokens
    return self._last

  def figures(self) -> dict[str, Any]:
    """Rows, tokens, seconds, and rows and tokens per second."""
    seconds = self._last - self._first
    rates = dict.fromkeys(('rows_per_second', 'tokens_per_second'))
    if seconds > 0:
      rates['rows_per_second'] = (self._rows - 1) / seconds
      rates['tokens_per_second'] = (self._tokens - self._first_tokens) / seconds
    return {
      'rows': self._rows,
      'skipped': self.skipped,
      'tokens': self._tokens,
      'seconds': max(self._last - self._begin, 0.0),
      **rates,
    }


class _Report:
  """Throughput and, with references, metrics, worst rows and edits."""

  def __init__(
    self,
    args: argparse.Namespace,
    table: _Table,
    references: dict[str, list[str]],
  ):
    from craft_jax.inference.task_metrics import Tally

    self._args, self._prompt = args, table.prompt
    self._todo = references  # of the prompts that are not scored yet
    self._measured = bool(references)
    self._tally = Tally(args.worst)
    self.clock = _Clock()

  def add(self, number: int, record: Record, completion: str) -> None:
    """Takes a row; of rows with one prompt the first is scored."""
    prompt = record.fields[self._prompt]
    if references := self._todo.pop(prompt, None):
      self._tally.add(number + 1, prompt, references, completion)

  def print(self) -> None:
    """Prints throughput to standard error, and the rest where there is room."""
    from craft_jax.inference import task_metrics

    figures = self.clock.figures()
    if not self._args.quiet:
      print(_throughput(figures), file=sys.stderr)
    if self.clock.breaks:
      print(
        f'craft: {self.clock.breaks} completion(s) have line breaks, written '
        'as \\n; an output of .jsonl keeps them',
        file=sys.stderr,
      )
    metrics, worst, edits = {}, [], []
    if self._measured:
      metrics = task_metrics.summary(self._tally.scores, intervals=True)
      worst = [wrong.to_json() for wrong in self._tally.worst]
    if self._args.errors:
      edits = task_metrics.most_frequent(self._tally.counts, _NUM_EDITS)
    if self._args.json:
      found: dict[str, Any] = figures
      if self._measured:
        found |= {'metrics': metrics, 'worst': worst}
      if self._args.errors:
        found |= {'errors': edits}
      print(strict_json.dumps(found))
    elif self._measured:
      out = sys.stderr if self._args.output == '-' else sys.stdout
      for line in _report_lines(metrics, worst, edits):
        print(terminal.visible(line) if out.isatty() else line, file=out)


def _throughput(figures: dict[str, Any]) -> str:
  """A line on rows and time."""
  parts = [f'{figures["rows"]:,} row(s) in {figures["seconds"]:.1f} s']
  if figures['skipped']:
    parts.append(f'{figures["skipped"]:,} were there')
  if figures['rows_per_second']:
    parts.append(
      f'{figures["rows_per_second"]:,.1f} rows/s, '
      f'{figures["tokens_per_second"]:,.0f} tokens/s after the first'
    )
  return '; '.join(parts)


def _report_lines(
  metrics: dict[str, Any], worst: list[dict[str, Any]], edits: list[Any]
) -> Iterator[str]:
  from craft_jax.runs import metric_table

  yield f'{metrics["task_rows"]:,} prompt(s), with 95 % intervals:'
  yield from (f'  {line}' for line in metric_table.lines(metrics))
  if worst:
    yield 'worst rows, [reference→completion] where they differ:'
    for row in worst:
      prompt, text = (
        predict_files.one_line_text(row[name])
        for name in ('prompt', 'alignment')
      )
      yield f'  row {row["row"]}, {row["cer"]:.0%}: {prompt} | {text}'
  if edits:
    yield 'most frequent edits, reference→completion:'
    for edit in edits:
      sides = (_side(edit[name]) for name in ('reference', 'completion'))
      yield f'  {"→".join(sides)} {edit["count"]}'


def _side(text: str) -> str:
  """A side of an edit on one line: ∅ for nothing, ␣ for a space."""
  from craft_jax.inference.task_metrics import NOTHING

  return predict_files.one_line_text(text).replace(' ', '␣') or NOTHING
