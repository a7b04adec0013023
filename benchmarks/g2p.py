"""How many English words does a run of `configs/g2p.py` pronounce wrongly?

Of the words of its test split, none of which it has seen: the share of words
whose pronunciation is none of the dictionary's (word error), and the edits per
phoneme (phoneme error), with 95 % intervals. Beside it the joint n-grams of
Phonetisaurus (Novak et al. 2016, doi:10.1017/S1351324915000315), trained on
the same words; `pip install phonetisaurus` brings its programs for Linux on
x86-64, and it is left out without them. Stress is not predicted.

Published on splits of their own: 24.7 % of words and 5.9 % of phonemes by joint
n-grams (Bisani and Ney 2008, as cited by Yolchuyeva et al.), 22.1 % and 5.2 %
by a transformer (Yolchuyeva et al. 2019, arXiv:2004.06338).

  craft train --config=g2p --workdir=runs/g2p
  python benchmarks/g2p.py --workdir runs/g2p [--beams 5]
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import measure

from craft_jax.data import pairs, sources
from craft_jax.data.corpus import Split
from craft_jax.data.pairs import Pair
from craft_jax.data.prepare import open_corpus
from craft_jax.inference import language_model, task_metrics
from craft_jax.inference.language_model import LanguageModel

_BARS = {'word_error': 0.25, 'phoneme_error': 0.06}


def figures(
  rows: Sequence[Pair], completions: Sequence[str], seconds: float
) -> dict[str, float | None]:
  """Errors of predicted pronunciations, their intervals and the time."""
  scores = [
    task_metrics.score(completion, row.completions)
    for row, completion in zip(rows, completions, strict=True)
  ]
  found: Mapping[str, Any] = task_metrics.summary(scores, intervals=True)
  return {
    'word_error': 1 - found['exact_match'],
    'word_error_low': 1 - found['exact_match_high'],
    'word_error_high': 1 - found['exact_match_low'],
    'phoneme_error': found['cer'],
    'phoneme_error_low': found['cer_low'],
    'phoneme_error_high': found['cer_high'],
    'seconds': seconds,
    'bar': _BARS['word_error'],
  }


def craft(
  lm: LanguageModel, rows: Sequence[Pair], **options: Any
) -> dict[str, float | None]:
  """Errors of a trained model."""
  begin = time.perf_counter()
  found = lm.predict([row.prompt for row in rows], **options)
  return figures(rows, found, time.perf_counter() - begin)


def phonetisaurus(
  train: Sequence[Pair], rows: Sequence[Pair]
) -> dict[str, float | None] | None:
  """Errors of joint n-grams; `seconds` include their training."""
  try:
    import phonetisaurus as package
  except ImportError:
    print('Phonetisaurus is left out: pip install phonetisaurus',
          file=sys.stderr)  # fmt: skip
    return None
  phones = {letter: phone for phone, letter in sources.ARPABET.items()}
  lexicon = {
    row.prompt: [[phones[x] for x in text] for text in row.completions]
    for row in train
  }
  begin = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    model = pathlib.Path(folder) / 'model.fst'
    package.train(lexicon, model)
    found = dict(package.predict([row.prompt for row in rows], model))
  texts = [
    ''.join(sources.ARPABET[phone] for phone in found.get(row.prompt, []))
    for row in rows
  ]
  return figures(rows, texts, time.perf_counter() - begin)


def main() -> None:
  """Prints a table, then one JSON object."""
  parser = measure.arguments(__doc__ or '')
  parser.add_argument(
    '--workdir', required=True, help='a run of configs/g2p.py'
  )
  parser.add_argument(
    '--beams', type=int, default=5, help='beside greedy decoding (default: 5)'
  )
  args = parser.parse_args()
  lm = language_model.load(args.workdir)
  corpus = open_corpus(lm.cfg, lm.vocabulary)
  train, rows = (rows_of(corpus, part) for part in ('train', 'test'))
  variants = {
    'greedy decoding': craft(lm, rows),
    f'{args.beams} beams': craft(lm, rows, beams=args.beams),
    'Phonetisaurus': phonetisaurus(train, rows),
  }
  found = {name: row for name, row in variants.items() if row}
  print(f'{len(rows):,} test words after {len(train):,} of training')
  print(f'{"":18}{"word error":>12}{"phoneme error":>16}{"seconds":>10}')
  for name, row in found.items():
    print(
      f'{name:18}{row["word_error"]:12.2%}{row["phoneme_error"]:16.2%}'
      f'{row["seconds"]:10.1f}'
    )
  measure.conclude(
    (__doc__ or '').splitlines()[0],
    1,
    found,
    bars='word_error at most',
    test_words=len(rows),
    train_words=len(train),
    fingerprint=corpus.fingerprint,
  )


def rows_of(corpus: Any, part: str) -> list[Pair]:
  """Words of a split with all their pronunciations."""
  split: Split = getattr(corpus, part)
  return pairs.rows_of(split.tokens, corpus.vocabulary)


if __name__ == '__main__':
  main()
