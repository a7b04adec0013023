"""Scores texts under a trained model: metrics, and nats of each character."""

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference import metrics, score
from craft_jax.inference.dynamic_evaluation import (
  FIGURES,
  Adaptation,
  adaptive_nats,
)
from craft_jax.inference.load import Trained
from craft_jax.inference.sampling.prompt import start_tokens


class Scored(NamedTuple):
  """Scores of a text.

  Attributes:
    figures: `name`, `characters`, `bytes`, total `nats` and the metrics of
      `metrics.summary`; for adaptive models also `nats_dynamic`, `loss_dynamic`
      and so on, with the suffixes of `dynamic_evaluation.adaptive_nats`.
    characters: the text, invalid bytes as surrogates; '' if not requested.
    offsets: byte offset of each character, int64.
    nats: surprisal of each character, float64, under the keys `nats`,
      `nats_dynamic` and so on.
  """

  figures: dict[str, Any]
  characters: str
  offsets: np.ndarray
  nats: dict[str, np.ndarray]


class _Text(NamedTuple):
  name: str
  data: bytes
  ids: np.ndarray


def score_texts(
  trained: Trained,
  texts: Sequence[tuple[str, bytes]],
  *,
  stride: int | None = None,
  each: bool = False,
  adaptation: Adaptation | None = None,
  cache: bool = False,
) -> list[Scored]:
  """Scores texts, each of which starts like a document.

  Args:
    trained: the model.
    texts: name and bytes, taken as they are; none empty.
    stride: see `score.stride_of`.
    each: keep the scores of single characters too.
    adaptation: adds figures of weights that adapt, to each text on its own.
    cache: adds figures of counts beside the model.

  Raises:
    UserError: a text is empty or has a character outside the vocabulary.
  """
  return score.finished(
    score_steps(
      trained, texts, stride=stride, each=each, adaptation=adaptation,
      cache=cache,
    )
  )  # fmt: skip


def score_steps(
  trained: Trained,
  texts: Sequence[tuple[str, bytes]],
  *,
  stride: int | None = None,
  each: bool = False,
  adaptation: Adaptation | None = None,
  cache: bool = False,
  most_reads: int = score.MOST_READS,
) -> Generator[int, None, list[Scored]]:
  """Like `score_texts`, as a generator that pauses after each window.

  It yields the number of tokens read for the window and returns the scores.
  `most_reads` limits the tokens of a dispatch (see `score.score_pieces`).
  """
  stride = score.stride_of(stride, trained.cfg.model.context)
  vocabulary = trained.vocabulary
  start = start_tokens(vocabulary, trained.meta.documents)
  read = [_read(vocabulary, name, data) for name, data in texts]
  tokens = [np.concatenate([start, text.ids]) for text in read]
  totals = [0.0] * len(texts)
  kept: list[list[np.ndarray]] = [[] for _ in texts]
  for piece in score.score_pieces(
    trained.model, trained.params, tokens, stride=stride,
    most_reads=most_reads,
  ):  # fmt: skip
    totals[piece.text] += float(piece.nats.sum(dtype=np.float64))
    # Do not keep all scores of a huge text unless they are needed.
    if each or cache:
      kept[piece.text].append(piece.nats)
    yield score.window_reads(len(tokens[piece.text]), trained.cfg.model.context)
  found = []
  for text, ids, total, pieces in zip(read, tokens, totals, kept, strict=True):
    nats = {'nats': np.concatenate(pieces)} if pieces else {}
    adaptive = adaptive_nats(
      trained.model, trained.params, vocabulary, ids, nats.get('nats'),
      stride=stride, adaptation=adaptation, cache=cache,
    )  # fmt: skip
    figures = _figures(vocabulary, text, total)
    for name, array in adaptive.items():
      total = float(array.sum(dtype=np.float64))
      other = _figures(vocabulary, text, total)
      figures[f'nats_{name}'] = total
      figures |= {f'{key}_{name}': other[key] for key in FIGURES}
      nats[f'nats_{name}'] = array
    found.append(_scored(vocabulary, text, figures, nats if each else {}))
  return found


def _read(vocabulary: Vocabulary, name: str, data: bytes) -> _Text:
  if not data:
    raise UserError(f'{name} is empty; give some text to score')
  try:
    return _Text(name, data, vocabulary.encode(data))
  except UserError as e:
    raise UserError(f'{name}: {e}') from e


def _figures(
  vocabulary: Vocabulary, text: _Text, total: float
) -> dict[str, Any]:
  unknown = int(np.count_nonzero(text.ids == vocabulary.unk))
  num_chars = len(text.data.decode('utf-8', 'surrogateescape'))
  sums = {
    'nll': total,
    'count': len(text.ids),
    'chars': num_chars,
    'bytes': len(text.data),
  }
  withheld = f'{unknown:,} characters became UNK' if unknown else ''
  return {
    'name': text.name,
    'characters': num_chars,
    'bytes': len(text.data),
    'nats': total,
  } | metrics.summary(sums, withheld)


def _scored(
  vocabulary: Vocabulary,
  text: _Text,
  figures: dict[str, Any],
  nats: dict[str, np.ndarray],
) -> Scored:
  """Converts the scores of tokens to scores of characters."""
  characters, offsets = '', np.zeros(0, np.int64)
  for name, array in nats.items():
    characters, offsets, nats[name] = score.characters(
      vocabulary, text.data, array
    )
  return Scored(figures, characters, offsets, nats)
