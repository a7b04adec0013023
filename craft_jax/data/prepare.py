"""Prepares token arrays from the settings: `open_corpus`."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from craft_jax.config.load import flatten
from craft_jax.config.settings import Config
from craft_jax.data import cache, pair_corpus, sources, splits
from craft_jax.data.corpus import Corpus, Prepared, Split
from craft_jax.data.sources import Document, Source
from craft_jax.data.splits import Named
from craft_jax.data.text import cleaning, utf8
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.runtime import host_memory

# Lower bounds on peak memory in bytes per byte of text, measured on English and
# Russian (docs/data.md).
_LEAST = {'byte': 4.6, 'char': 2.8}
_LEAST_TEXT8 = 23.0  # the cleaning step `text8` splits the text into words

# What the arrays of pairs depend on besides: each window has whole pairs.
_OF_PAIRS = (
  'data.format', 'data.prompt_field', 'data.completion_field',
  'data.group_field', 'model.context',
)  # fmt: skip

# To be increased when the same settings and bytes give different arrays.
_VERSION = 2


def open_corpus(cfg: Config, vocabulary: Vocabulary | None = None) -> Corpus:
  """Opens the corpus of a config from the cache, or prepares it.

  The cache key covers the bytes of the source and every setting that affects
  the arrays, so that no change of either leads to stale arrays.

  Args:
    cfg: run settings; `data` and `text` are read.
    vocabulary: vocabulary to use, such as a checkpoint's; None builds one.

  Raises:
    UserError: the settings or the text are invalid.
  """
  cleaning.check_steps(cfg.text.clean)
  if cfg.text.vocabulary == 'byte' and vocabulary == Vocabulary.byte():
    vocabulary = None  # shares the cache entry of a byte vocabulary built here
  source = sources.open_source(cfg.data)
  sizes = [d.size for part in source.parts.values() for d in part]
  _check_room(source, max(sizes, default=0))  # the key reads one at a time
  key = _cache_key(cfg, vocabulary, source)
  folder = sources.cache_folder(cfg.data) / 'corpora' / key[:32]
  entry = cache.load(folder)
  reused = entry is not None
  if entry is None:
    kind = vocabulary.kind if vocabulary else cfg.text.vocabulary
    least = _LEAST_TEXT8 if 'text8' in cfg.text.clean else _LEAST[kind]
    _check_room(source, int(least * sum(sizes)))
    facts, arrays = _prepare(cfg, vocabulary, source)
    if _cache_key(cfg, vocabulary, source) != key:
      raise UserError(f'{source.title} changed while it was read; run again')
    cache.store(folder, facts, arrays)
    entry = cache.load(folder)
    if entry is None:
      raise UserError(
        f'prepared data in {folder} do not read back as written; set '
        '--config.data.cache_dir=DIR to another disk'
      )
  return _corpus_of(*entry, source, folder, reused)


def _check_room(source: Source, needed: int) -> None:
  """Checks the available memory, since the kernel's OOM killer gives no reason.

  Raises:
    UserError: this process cannot have `needed` bytes.
  """
  left = host_memory.host_room()
  if left is None or needed <= left.bytes:
    return
  raise UserError(
    f'preparing {source.title} needs at least {needed / 1e9:,.2f} GB of '
    f'memory, and {left.source} leaves {left.bytes / 1e9:,.2f} GB; give less '
    'text, or prepare it on a larger machine (craft data prepare) with '
    '--config.data.cache_dir=DIR and copy that folder here'
  )


def _cache_key(
  cfg: Config, vocabulary: Vocabulary | None, source: Source
) -> str:
  """sha256 of everything that the output of `_prepare` depends on."""
  flat = flatten(cfg)
  relevant = {
    name: flat[name]
    for name in (
      'text.vocabulary',
      'text.max_chars',
      'text.unknown',
      'text.clean',
      'data.split',
      'data.valid_fraction',
      'data.test_fraction',
    )
  }
  if cfg.data.format == 'pairs':
    relevant |= {name: flat[name] for name in _OF_PAIRS}
  relevant['vocabulary'] = vocabulary.fingerprint if vocabulary else ''
  relevant['version'] = _VERSION
  digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
  for part, documents in source.parts.items():
    for document in documents:
      content = document.read()
      line = json.dumps([part, document.name, len(content)])
      digest.update(line.encode())
      digest.update(content)
  return digest.hexdigest()


def _prepare(
  cfg: Config, vocabulary: Vocabulary | None, source: Source
) -> cache.Entry:
  """Reads, splits and encodes the text; returns facts and token arrays."""
  made = _FORMATS[cfg.data.format](cfg, vocabulary, source)
  digest = hashlib.sha256(made.vocabulary.fingerprint.encode())
  for name, array in made.arrays.items():
    line = json.dumps([name, made.counts[name], array.dtype.str])
    digest.update(line.encode())
    digest.update(array.data)
  facts = {
    'vocabulary': made.vocabulary.to_json(),
    'counts': made.counts,
    'fingerprint': digest.hexdigest(),
    'valid_fingerprint': _text_fingerprint(made.valid_texts),
    'withheld': _withheld(made),
    'documents': made.documents,
    'report': [dataclasses.asdict(step) for step in made.report],
    'pairs': made.pairs,
  }
  return facts, made.arrays


def _prepare_text(
  cfg: Config, vocabulary: Vocabulary | None, source: Source
) -> Prepared:
  """Cleans, splits and encodes documents."""
  kind = vocabulary.kind if vocabulary else cfg.text.vocabulary
  parts, report = _cleaned_parts(cfg, kind, source)
  if vocabulary is None:
    vocabulary = _build_vocabulary(cfg, parts['train'])
  arrays, counts = {}, {}
  for name, documents in parts.items():
    arrays[name] = _encode(name, documents, vocabulary)
    counts[name] = {
      'num_chars': sum(splits.num_characters(text) for _, text in documents),
      'num_bytes': sum(_num_bytes(text) for _, text in documents),
      'documents': len(documents),
    }
  return Prepared(
    vocabulary=vocabulary,
    arrays=arrays,
    counts=counts,
    valid_texts=[text for _, text in parts['valid']],
    documents=sum(len(part) for part in source.parts.values()),
    report=report,
  )


_FORMATS: dict[str, Callable[..., Prepared]] = {
  'text': _prepare_text,
  'pairs': pair_corpus.prepare,
}


def _cleaned_parts(
  cfg: Config, kind: str, source: Source
) -> tuple[dict[str, list[Named]], list[cleaning.StepReport]]:
  """Cleans and splits documents; returns them by split, and the report."""
  d = cfg.data
  parts: dict[str, list[Document]] = source.parts
  if 'all' in parts and d.split == 'file':
    parts = splits.by_file(parts['all'], d.valid_fraction, d.test_fraction)
  cleaned: dict[str, list[Named]] = {}
  reports = []
  for part, documents in parts.items():
    cleaned[part] = []
    for document in documents:
      text, report = cleaning.clean(
        document.read(), cfg.text.clean, document.name
      )
      reports.append(report)
      if kind == 'char' and isinstance(text, bytes):
        text = utf8.decode_strict(text, document.name)
      if text:
        cleaned[part].append((document.name, text))
    if not cleaned[part]:
      raise UserError(
        f'nothing is left of {source.title} ({part}) after cleaning; change '
        'text.clean or give more text'
      )
  if 'all' in cleaned:
    cleaned = splits.by_fraction(
      cleaned['all'], d.valid_fraction, d.test_fraction
    )
  return cleaned, cleaning.combine(reports)


def _build_vocabulary(cfg: Config, train: list[Named]) -> Vocabulary:
  if cfg.text.vocabulary == 'byte':
    return Vocabulary.byte()
  text = ''.join(text for _, text in train if isinstance(text, str))
  return Vocabulary.from_text(text, cfg.text.max_chars, cfg.text.unknown)


def _encode(
  part: str, documents: list[Named], vocabulary: Vocabulary
) -> np.ndarray:
  """Encodes the documents of a split, separated by BOS."""
  bos = np.array([vocabulary.bos], vocabulary.dtype)
  pieces: list[np.ndarray] = []
  for name, text in documents:
    try:
      tokens = vocabulary.encode(text)
    except UserError as e:
      raise UserError(f'{part} split, {name}: {e}') from e
    pieces += [bos, tokens] if pieces else [tokens]
  return np.concatenate(pieces)


def _text_fingerprint(texts: Iterable[splits.Text]) -> str:
  """sha256 over texts as UTF-8, each preceded by its length."""
  digest = hashlib.sha256()
  for text in texts:
    data = text if isinstance(text, bytes) else utf8.to_bytes(text)
    digest.update(f'{len(data)}:'.encode())
    digest.update(data)
  return digest.hexdigest()


def _num_bytes(text: splits.Text) -> int:
  return len(text if isinstance(text, bytes) else utf8.to_bytes(text))


def _withheld(made: Prepared) -> str:
  """Why the original text's bytes cannot be counted, or ''."""
  lossy = [f'{r.name} changed {r.changed:,}' for r in made.report if r.lossy]
  if lossy:
    return f'cleaning was lossy ({", ".join(lossy)})'
  unknown = sum(
    int(np.count_nonzero(array == made.vocabulary.unk))
    for array in made.arrays.values()
  )
  return f'{unknown:,} characters became UNK' if unknown else ''


def _corpus_of(
  facts: dict[str, Any],
  arrays: dict[str, np.ndarray],
  source: Source,
  folder: pathlib.Path,
  reused: bool,
) -> Corpus:
  parts = {
    name: Split(name, array, **facts['counts'][name])
    for name, array in arrays.items()
  }
  vocabulary = Vocabulary.from_json(facts['vocabulary'])
  of_pairs = facts.get('pairs')  # not in entries of older versions
  return Corpus(
    train=parts['train'],
    valid=parts['valid'],
    test=parts.get('test'),
    vocabulary=vocabulary,
    fingerprint=facts['fingerprint'],
    valid_fingerprint=facts['valid_fingerprint'],
    withheld=facts['withheld'],
    documents=facts['documents'],
    summary=_summary(source.title, facts, list(parts.values()), vocabulary),
    report=facts['report'],
    notes=(*source.notes, *pair_corpus.notes(of_pairs)),
    folder=folder,
    reused=reused,
    pairs=of_pairs,
    warnings=tuple(pair_corpus.warnings(of_pairs)),
  )


def _summary(
  title: str,
  facts: dict[str, Any],
  parts: list[Split],
  vocabulary: Vocabulary,
) -> str:
  documents = facts['documents']
  if facts.get('pairs'):
    sizes = ', '.join(f'{part.documents:,} {part.name}' for part in parts)
    size = f'{documents:,} pairs; {sizes}'
  else:
    megabytes = sum(part.num_bytes for part in parts) / 1e6
    chars = ', '.join(f'{part.num_chars:,} {part.name}' for part in parts)
    size = (
      f'{megabytes:.2f} MB in {documents:,} '
      f'{"document" if documents == 1 else "documents"}; characters: {chars}'
    )
  return (
    f'{title}: {size}; {vocabulary.kind} vocabulary of {vocabulary.size}; '
    f'fingerprint {facts["fingerprint"][:12]}'
  )
