"""Statistics of a corpus, as JSON and as text."""

import unicodedata
from typing import Any

import numpy as np

from craft_jax.data.corpus import Corpus
from craft_jax.data.text import utf8


def facts_of(corpus: Corpus, top: int = 10) -> dict[str, Any]:
  """Statistics as a dict for JSON, with `top` frequent and rare characters."""
  vocabulary = corpus.vocabulary
  rows, codes, counts = [], np.zeros(0, np.int64), np.zeros(0, np.int64)
  for split in corpus.splits:
    present, count = utf8.count_characters(vocabulary.decode(split.tokens))
    codes, counts = np.append(codes, present), np.append(counts, count)
    rows.append(
      {
        'name': split.name,
        'tokens': len(split.tokens),
        'characters': split.num_chars,
        'distinct': len(present),
        'bytes': split.num_bytes,
        'documents': split.documents,
        'unknown': int(np.count_nonzero(split.tokens == vocabulary.unk)),
      }
    )
  distinct, where = np.unique(codes, return_inverse=True)
  totals = np.bincount(where, weights=counts).astype(np.int64)
  order = np.lexsort((distinct, -totals))
  ranked = [[chr(distinct[i]), int(totals[i])] for i in order]
  return {
    'summary': corpus.summary,
    'fingerprint': corpus.fingerprint,
    'documents': corpus.documents,
    'bytes': sum(row['bytes'] for row in rows),
    'characters': sum(row['characters'] for row in rows),
    'counted_characters': int(totals.sum()),  # those of prompts too
    'distinct_characters': len(ranked),
    'vocabulary': {
      'kind': vocabulary.kind,
      'tokens': vocabulary.num_text_tokens,
      'size': vocabulary.size,
      'dtype': str(corpus.train.tokens.dtype),
    },
    'splits': rows,
    'most_frequent': ranked[:top],
    'least_frequent': ranked[::-1][:top],
    'cleaning': corpus.report,
    'bits_per_byte_withheld': corpus.withheld,
    'notes': list(corpus.notes),
    'warnings': list(corpus.warnings),
    'pairs': corpus.pairs,
    'folder': str(corpus.folder),
    'reused': corpus.reused,
  }


def lines_of(facts: dict[str, Any]) -> list[str]:
  """Formats the result of `facts_of` as lines of text."""
  v = facts['vocabulary']
  text = 'completions' if facts['pairs'] else 'size'
  lines = [
    facts['summary'],
    '',
    f'{text:<13}{facts["bytes"]:,} bytes, {facts["characters"]:,} '
    f'characters, {facts["distinct_characters"]:,} distinct',
    f'vocabulary   {v["kind"]}: {v["tokens"]:,} tokens and '
    f'{v["size"] - v["tokens"]} special tokens, stored as {v["dtype"]}',
    f'fingerprint  {facts["fingerprint"]}',
    f'arrays       {facts["folder"]}',
    '',
  ]
  if facts['pairs']:
    lines += _pair_lines(facts['pairs'])
  else:
    lines += _split_lines(facts['splits'])
  for title in ('most_frequent', 'least_frequent'):
    lines += ['', f'{title.replace("_", " ")} characters']
    for character, count in facts[title]:
      share = 100 * count / facts['counted_characters']
      lines.append(f'  {count:>12,}  {share:6.2f} %  {_shown(character)}')
  lines += ['', 'cleaning', *_cleaning_lines(facts['cleaning']), '']
  reason = facts['bits_per_byte_withheld']
  lines.append(
    'bits per byte  ' + (f'withheld: {reason}' if reason else 'can be given')
  )
  unknown = sum(split['unknown'] for split in facts['splits'])
  if unknown:
    lines.append(f'unknown      {unknown:,} characters became UNK')
  lines += [f'note: {note}' for note in facts['notes']]
  return lines + [f'warning: {warning}' for warning in facts['warnings']]


def _split_lines(splits: list[dict[str, Any]]) -> list[str]:
  names = ['tokens', 'characters', 'distinct', 'bytes', 'documents']
  return [
    _row('split', names),
    *(_row(s['name'], [f'{s[n]:,}' for n in names]) for s in splits),
  ]


_PAIRS = 12  # width of the columns of pairs, of which there are more


def _pair_lines(facts: dict[str, Any]) -> list[str]:
  """The statistics of `data.pair_corpus`, lengths as percentiles."""
  names = ['rows', 'prompts', 'repeated', 'windows', 'fill', 'learnt']
  context, longest = facts['context'], facts['longest']
  lines = [_row('pairs', names, _PAIRS)]
  for name, split in facts['splits'].items():
    counts = [f'{split[n]:,}' for n in ('rows', 'prompts', 'repeated')]
    shares = [f'{split[n]:.1%}' for n in ('fill', 'learnt')]
    lines.append(
      _row(name, [*counts, f'{split["windows"]:,}', *shares], _PAIRS)
    )
  percentiles = ['50 %', '90 %', '99 %', 'longest']
  for part in ('prompt', 'completion'):
    lines += ['', f'{part} lengths in tokens', _row('', percentiles, _PAIRS)]
    for name, split in facts['splits'].items():
      lengths = split[f'{part}_lengths'].values()
      lines.append(_row(name, [f'{n:,}' for n in lengths], _PAIRS))
  lines += [
    '',
    f'longest row  {longest["tokens"]:,} tokens ({longest["place"]}), '
    f'model.context={context}',
  ]
  for name, found in facts['leakage'].items():
    lines.append(
      f'leakage      {found["rows"]:,} of {found["of"]:,} {name} rows have a '
      f'prompt of training, {found["pairs"]:,} with its completion too'
    )
  return lines


def _row(name: str, cells: list[str], width: int = 15) -> str:
  return f'{name:<8}' + ''.join(f'{cell:>{width}}' for cell in cells)


def _cleaning_lines(report: list[dict[str, Any]]) -> list[str]:
  if not report:
    return ['  no steps (text.clean is empty): the text is as it was read']
  return [
    f'  {step["name"]:<14} {step["changed"]:>12,} changed'
    + (f'   {step["example"]}' if step['example'] else '')
    for step in report
  ]


def _shown(character: str) -> str:
  """A character with its code point and Unicode name."""
  code = f'U+{ord(character):04X}'
  name = unicodedata.name(character, '') or _CONTROLS.get(character, 'unnamed')
  visible = character if character.isprintable() else repr(character)[1:-1]
  return f"'{visible}' {code} {name}"


_CONTROLS = {
  '\t': 'TAB',
  '\n': 'LINE FEED',
  '\r': 'CARRIAGE RETURN',
  '\f': 'FORM FEED',
  '\0': 'NULL',
}
