"""From files of pairs to packed splits, and what there is to say of them."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from craft_jax.config.settings import Config
from craft_jax.data import pair_files, pairs, splits
from craft_jax.data.corpus import Prepared
from craft_jax.data.pair_files import Fields, LeftOut, Row
from craft_jax.data.sources import Document, Source
from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

_PLACES = 5  # rows left out that are named, for each reason
_PERCENTILES = (50, 90, 99, 100)

Parts = dict[str, list[Row]]


def prepare(
  cfg: Config, vocabulary: Vocabulary | None, source: Source
) -> Prepared:
  """Reads, splits and packs pairs.

  Args:
    cfg: run settings; `data`, `text` and `model.context` are read.
    vocabulary: vocabulary to use; None builds that of the training rows.
    source: files by split, or those of all splits.

  Raises:
    UserError: a file is no table of pairs, a split is empty, or a character is
      not in the vocabulary.
  """
  kind = vocabulary.kind if vocabulary else cfg.text.vocabulary
  parts, left_out = _read(cfg, source)
  longest, context = None, cfg.model.context
  for part, rows in parts.items():
    fitting, too_long, found = _fitting(rows, kind, context)
    parts[part] = fitting
    left_out += too_long
    if found and (longest is None or found['tokens'] > longest['tokens']):
      longest = found
  counted = _counted(left_out)
  for part, rows in parts.items():
    if not rows:
      raise UserError(
        f'{source.title} ({part}) holds no pair that can be used'
        + (f': {described(counted)}' if counted else '; give rows')
      )
  if 'all' in parts:
    parts = _split(cfg, parts['all'])
  if vocabulary is None:
    vocabulary = _vocabulary(cfg, parts['train'])
  arrays = {n: _pack(n, rows, vocabulary, context) for n, rows in parts.items()}
  return Prepared(
    vocabulary=vocabulary,
    arrays=arrays,
    counts={
      name: _counts(rows, arrays[name], vocabulary)
      for name, rows in parts.items()
    },
    valid_texts=[text for row in parts['valid'] for text in row[:2]],
    documents=sum(map(len, parts.values())),
    report=[],
    pairs={
      'context': context,
      'longest': longest,
      'left_out': counted,
      'not_read': _others(source),
      'splits': {
        name: _facts(rows, arrays[name], vocabulary, context)
        for name, rows in parts.items()
      },
      'leakage': {
        name: leakage(parts['train'], rows)
        for name, rows in parts.items()
        if name != 'train'
      },
    },
  )


# --- rows --------------------------------------------------------------------


def _read(cfg: Config, source: Source) -> tuple[Parts, list[LeftOut]]:
  """The rows of each part of the source, and those that cannot be used."""
  d = cfg.data
  fields = Fields(d.prompt_field, d.completion_field, d.group_field)
  files = {n: _readable(source, part) for n, part in source.parts.items()}
  if 'all' in files and d.split == 'file':
    files = splits.by_file(files['all'], d.valid_fraction, d.test_fraction)
  parts: Parts = {}
  left_out = []
  for part, documents in files.items():
    parts[part] = []
    for document in documents:
      for row in pair_files.rows_in(document.name, document.read(), fields):
        if isinstance(row, Row):
          parts[part].append(row)
        else:
          left_out.append(row)
  return parts, left_out


def _readable(source: Source, documents: list[Document]) -> list[Document]:
  """The files of pairs; those beside them, such as a README, are not read."""
  found = [d for d in documents if pair_files.is_readable(d.name)]
  if not found:
    raise UserError(
      f'{source.title} has no file of pairs ({documents[0].name} is none): '
      f'data.format=pairs reads {", ".join(pair_files.EXTENSIONS)}; rename it '
      'by its format, or use data.format=text'
    )
  return found


def _others(source: Source) -> list[str]:
  """Names of the files that are not read."""
  return [
    document.name
    for documents in source.parts.values()
    for document in documents
    if not pair_files.is_readable(document.name)
  ]


def _fitting(
  rows: list[Row], kind: str, context: int
) -> tuple[list[Row], list[LeftOut], dict[str, Any] | None]:
  """The rows that fit the context, the others, and the longest of all."""
  if not rows:
    return [], [], None
  prompt_N, completion_N = pairs.row_lengths(kind, *_columns(rows))
  length_N = prompt_N + completion_N + pairs.SPECIALS_PER_ROW
  most = int(length_N.argmax())
  longest = {'tokens': int(length_N[most]), 'place': rows[most].place}
  fits_N = length_N <= context
  if fits_N.all():
    return rows, [], longest
  reason = f'longer than model.context={context}'
  too_long = [
    LeftOut(reason, rows[i].place) for i in np.flatnonzero(~fits_N).tolist()
  ]
  return list(itertools.compress(rows, fits_N.tolist())), too_long, longest


def _columns(rows: Iterable[Row]) -> tuple[list[str], list[str]]:
  """The prompts and the completions of rows."""
  return [row.prompt for row in rows], [row.completion for row in rows]


def _split(cfg: Config, rows: list[Row]) -> Parts:
  """Divides rows by a hash of their group or, without one, of their prompt."""
  d = cfg.data
  names = [row.group if d.group_field else row.prompt for row in rows]
  distinct = dict.fromkeys(names)
  if len(distinct) < (3 if d.test_fraction else 2):
    of = f'data.group_field={d.group_field}' if d.group_field else 'the prompts'
    raise UserError(
      f'{len(distinct)} distinct value(s) of {of} leave a split empty; give '
      'more pairs, or files for each split (data.split=given)'
    )
  by_part = splits.by_hash(distinct, d.valid_fraction, d.test_fraction)
  part_of = {name: part for part, some in by_part.items() for name in some}
  parts: Parts = {part: [] for part in by_part}
  for name, row in zip(names, rows, strict=True):
    parts[part_of[name]].append(row)
  return parts


def _vocabulary(cfg: Config, train: list[Row]) -> Vocabulary:
  if cfg.text.vocabulary == 'byte':
    return Vocabulary.byte()
  text = ''.join(itertools.chain(*_columns(train)))
  return Vocabulary.from_text(text, cfg.text.max_chars, cfg.text.unknown)


def _pack(
  part: str, rows: list[Row], vocabulary: Vocabulary, context: int
) -> np.ndarray:
  try:
    return pairs.pack(vocabulary, *_columns(rows), context)
  except UserError:
    for row in rows:  # which one it is
      try:
        vocabulary.encode(row.prompt + row.completion)
      except UserError as e:
        raise UserError(f'{part} split, {row.place}: {e}') from e
    raise


# --- facts -------------------------------------------------------------------


def _counts(
  rows: list[Row], tokens: np.ndarray, vocabulary: Vocabulary
) -> dict[str, int]:
  """The counts of a `Split`, of which completions are the text."""
  _, completions = _columns(rows)
  return {
    'num_chars': sum(map(len, completions)),
    'num_bytes': sum(len(utf8.to_bytes(text)) for text in completions),
    'documents': len(rows),
    'learnt': pairs.num_learnt(tokens, vocabulary),
  }


def _facts(
  rows: list[Row], tokens: np.ndarray, vocabulary: Vocabulary, context: int
) -> dict[str, Any]:
  """Statistics of a split; lengths are in tokens."""
  prompt_N, completion_N = pairs.row_lengths(vocabulary.kind, *_columns(rows))
  windows = (len(tokens) - 1) // context
  used = int(np.count_nonzero(tokens != vocabulary.pad))
  return {
    'rows': len(rows),
    'prompts': len({row.prompt for row in rows}),
    'repeated': len(rows) - len({row[:2] for row in rows}),
    'prompt_lengths': _percentiles(prompt_N),
    'completion_lengths': _percentiles(completion_N),
    'windows': windows,
    'fill': used / (windows * context),
    'learnt': pairs.num_learnt(tokens, vocabulary) / used,
  }


def _percentiles(length_N: np.ndarray) -> dict[str, int]:
  """Lengths that occur, by their percentile; 100 is the longest."""
  values = np.percentile(length_N, _PERCENTILES, method='inverted_cdf')
  return {
    str(p): int(v) for p, v in zip(_PERCENTILES, values.tolist(), strict=True)
  }


def leakage(train: Sequence[Row], held_out: Sequence[Row]) -> dict[str, int]:
  """How much of a held-out split occurs in training.

  Returns:
    `rows` whose prompt is one of training, `pairs` whose completion is too
    with that prompt, and `of`, the rows of the split.
  """
  prompts = {row.prompt for row in train}
  whole = {row[:2] for row in train}
  return {
    'rows': sum(row.prompt in prompts for row in held_out),
    'pairs': sum(row[:2] in whole for row in held_out),
    'of': len(held_out),
  }


def _counted(left_out: Iterable[LeftOut]) -> list[dict[str, Any]]:
  """Rows left out by reason, with the first places of each."""
  places = collections.defaultdict(list)
  for row in left_out:
    places[row.reason].append(row.place)
  return [
    {'reason': reason, 'rows': len(some), 'places': some[:_PLACES]}
    for reason, some in places.items()
  ]


def described(left_out: Iterable[dict[str, Any]]) -> str:
  """Rows left out, in words: `2 empty prompt (a.tsv:3, a.tsv:9)`."""
  return '; '.join(
    f'{row["rows"]:,} {row["reason"]} ({", ".join(row["places"])}'
    + (', ...)' if row['rows'] > len(row['places']) else ')')
    for row in left_out
  )


def notes(facts: dict[str, Any] | None) -> Iterator[str]:
  """What a user should know of prepared pairs, a sentence each."""
  if facts and facts['not_read']:
    names = facts['not_read']
    shown = ', '.join(names[:_PLACES]) + (', ...' * (len(names) > _PLACES))
    yield f'{len(names)} files are not of pairs and were not read: {shown}'
  for row in facts['left_out'] if facts else ():
    yield f'rows left out: {described([row])}'


def warnings(facts: dict[str, Any] | None) -> Iterator[str]:
  """Leakage of training into held-out splits, a sentence each."""
  for name, found in (facts['leakage'] if facts else {}).items():
    if found['rows']:
      yield (
        f'{found["rows"]:,} of {found["of"]:,} rows of the {name} split have a '
        f'prompt that is in training too, {found["pairs"]:,} with the same '
        'completion, so that scores on it are too good'
      )
