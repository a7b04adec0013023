"""Negative log-likelihood of each token of a text, in nats, by windows.

A text is an array of token ids whose first is not scored. For a text without
preceding context that is the token of `sampling.prompt.start_tokens`.
"""

import functools
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import (
  bucket,
  checked_stride,
  newer_half,
  num_eval_windows,
)
from craft_jax.model.losses import token_losses
from craft_jax.model.protocol import Model
from craft_jax.types import Params

# `-ln p` of each target, the K highest log-probabilities at its position in
# descending order, and their token ids.
Scored = tuple[Float[Array, 'B T'], Float[Array, 'B T K'], Int[Array, 'B T K']]

T = TypeVar('T')
_MOST_ROWS = 64
_MOST_LOGITS = 1 << 26  # per dispatch: 256 MiB in float32
MOST_READS = _MOST_LOGITS  # default limit of tokens per dispatch


class Piece(NamedTuple):
  """Scores of consecutive tokens of a text.

  Attributes:
    text: index of the text.
    first: index of the first token, not counting the token that is not scored.
    nats: `-ln p` of each token, float32 `[n]`.
    top: highest log-probabilities in descending order, float32 `[n, K]`.
    top_ids: their token ids, int32 `[n, K]`; lower ids first among equals.
  """

  text: int
  first: int
  nats: np.ndarray
  top: np.ndarray
  top_ids: np.ndarray


class _Row(NamedTuple):
  """A window: inputs start at `start`; the first `skip` targets are skipped."""

  text: int
  start: int
  skip: int


def stride_of(stride: int | None, context: int) -> int:
  """The tokens by which the windows of a score advance.

  Args:
    stride: from 0 to the context; 0 is the context, None half of it.
    context: tokens of a window.

  Raises:
    UserError: out of range.
  """
  stride = newer_half(context) if stride is None else stride
  return checked_stride(stride, context)


def window_reads(length: int, context: int) -> int:
  """Length of the padded windows of a text of `length` tokens."""
  return bucket(max(length - 1, 1), context)


def num_reads(length: int, context: int, stride: int | None = None) -> int:
  """Tokens that are read to score a text of `length` ids, each as often."""
  stride = stride_of(stride, context)
  windows = num_eval_windows(length, context, stride)
  return windows * window_reads(length, context)


@functools.partial(jax.jit, static_argnames=('model', 'num_top'))
def window_nats(
  model: Model,
  params: Params,
  x_BT: Int[Array, 'B T'],
  y_BT: Int[Array, 'B T'],
  segment_BT: Int[Array, 'B T'],
  num_top: int = 0,
) -> Scored:
  """Scores of each target and the `num_top` likeliest tokens; float32."""
  logits_BTV = model.apply(params, x_BT, segment_BT)
  nats_BT = token_losses(logits_BTV, y_BT)[1]
  if not num_top:  # skip the log-softmax and the search
    none_BTK = logits_BTV[..., :0]
    return nats_BT, none_BTK, none_BTK.astype(jnp.int32)
  log_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
  return nats_BT, *jax.lax.top_k(log_BTV, num_top)


def score_pieces(
  model: Model,
  params: Params,
  texts: Sequence[np.ndarray],
  *,
  stride: int | None = None,
  separator: int | None = None,
  num_top: int = 0,
  most_reads: int = MOST_READS,
) -> Iterator[Piece]:
  """Scores every token of every text but its first, each once.

  Windows advance by `stride` tokens and score the new ones, so each token is
  predicted from at least `context - stride` tokens, or all if there are fewer.
  Windows of several texts share a batch, and only one batch of logits exists
  at a time.

  Args:
    model: its `apply`.
    params: on one device.
    texts: ids, each at least 2 with the given one.
    stride: see `stride_of`.
    separator: id between documents, at which attention stops under
      `model.documents`; None where a text is one document.
    num_top: K, most likely tokens to report beside each.
    most_reads: tokens of one dispatch, but for one of a single window.

  Yields:
    Pieces in order within each text; those of several texts may alternate.

  Raises:
    ValueError: a text has no token to score.
    UserError: the stride is out of range.
  """
  stride = stride_of(stride, model.context)
  if any(len(tokens) < 2 for tokens in texts):
    raise ValueError('every text needs at least 2 tokens')
  before: tuple[list[_Row], Any] | None = None
  for rows, x_BT, y_BT in _batches(model, texts, stride, most_reads):
    segment_BT = np.cumsum(x_BT == separator, axis=1, dtype=np.int32)
    # Fetched one batch late, so that the device never waits for the host.
    now = rows, window_nats(model, params, x_BT, y_BT, segment_BT, num_top)
    if before is not None:
      yield from _pieces(texts, *before)
    before = now
  if before is not None:
    yield from _pieces(texts, *before)


def token_nats(
  model: Model,
  params: Params,
  tokens: np.ndarray,
  *,
  stride: int | None = None,
  separator: int | None = None,
) -> np.ndarray:
  """`-ln p` of every token of one text but the first, float32 `[N - 1]`."""
  pieces = score_pieces(
    model, params, [tokens], stride=stride, separator=separator
  )
  return np.concatenate([piece.nats for piece in pieces])


def texts_scores(
  model: Model,
  params: Params,
  texts: Sequence[np.ndarray],
  *,
  stride: int | None = None,
  num_top: int = 0,
) -> list[Piece]:
  """Scores of all tokens of each text, as one `Piece` per text."""
  return finished(
    texts_steps(model, params, texts, stride=stride, num_top=num_top)
  )


def finished(steps: Generator[Any, None, T]) -> T:
  """Runs a generator to its end and returns its return value."""
  while True:
    try:
      next(steps)
    except StopIteration as e:
      return e.value


def texts_steps(
  model: Model,
  params: Params,
  texts: Sequence[np.ndarray],
  *,
  stride: int | None = None,
  num_top: int = 0,
  most_reads: int = MOST_READS,
) -> Generator[int, None, list[Piece]]:
  """Like `texts_scores`; yields the tokens read after each window."""
  found: list[list[Piece]] = [[] for _ in texts]
  for piece in score_pieces(
    model, params, texts, stride=stride, num_top=num_top, most_reads=most_reads
  ):
    found[piece.text].append(piece)
    yield window_reads(len(texts[piece.text]), model.context)
  return [
    Piece(i, 0, *(np.concatenate(part) for part in zip(*arrays, strict=True)))
    for i, pieces in enumerate(found)
    for arrays in [[piece[2:] for piece in pieces]]
  ]


def _batches(
  model: Model, texts: Sequence[np.ndarray], stride: int, most_reads: int
) -> Iterator[tuple[list[_Row], np.ndarray, np.ndarray]]:
  """Batches of windows of one bucketed length; incomplete batches come last."""
  waiting: dict[int, list[_Row]] = {}
  for T, row in _rows(texts, model.context, stride):
    rows = waiting.setdefault(T, [])
    rows.append(row)
    if len(rows) == _rows_of_batch(model.vocabulary_size, T, most_reads):
      yield rows, *_arrays(texts, rows, T)
      waiting[T] = []
  for T, rows in waiting.items():
    if rows:
      yield rows, *_arrays(texts, rows, T)


def _rows(
  texts: Sequence[np.ndarray], context: int, stride: int
) -> Iterator[tuple[int, _Row]]:
  """Windows of all texts with their bucketed lengths."""
  for i, tokens in enumerate(texts):
    # All windows of a text have one length, so they stay in order.
    T = bucket(len(tokens) - 1, context)
    for k in range(num_eval_windows(len(tokens), context, stride)):
      yield T, _Row(i, k * stride, context - stride if k else 0)


def _rows_of_batch(vocabulary_size: int, T: int, most_reads: int) -> int:
  """Rows of a full batch, a power of two within the limits of a dispatch."""
  most = min(_MOST_LOGITS // vocabulary_size, most_reads)
  fit = max(most // T, 1)
  return min(1 << (fit.bit_length() - 1), _MOST_ROWS)


def _arrays(
  texts: Sequence[np.ndarray], rows: list[_Row], T: int
) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets, int32 `[B, T]`, padded with 0; B is a power of two."""
  B = 1 << (len(rows) - 1).bit_length()
  window_BS = np.zeros((B, T + 1), np.int32)
  for i, row in enumerate(rows):
    tokens = texts[row.text][row.start : row.start + T + 1]
    window_BS[i, : len(tokens)] = tokens
  return window_BS[:, :-1], window_BS[:, 1:]


def _pieces(
  texts: Sequence[np.ndarray], rows: list[_Row], scored: Scored
) -> Iterator[Piece]:
  """Scores of the windows of a batch, without padding."""
  of_rows = zip(*jax.device_get(scored), strict=True)
  for row, arrays in zip(rows, of_rows, strict=False):
    part = slice(row.skip, len(texts[row.text]) - 1 - row.start)
    found = [array[part] for array in arrays]
    yield Piece(row.text, row.start + row.skip, *found)


def characters(
  vocabulary: Vocabulary, data: bytes, nats: np.ndarray
) -> tuple[str, np.ndarray, np.ndarray]:
  """Converts scores of tokens to scores of characters.

  If tokens are bytes, the nats of a character are the sum over its bytes. A
  byte that is not UTF-8 counts as a character, a surrogate U+DC80 to U+DCFF.

  Args:
    vocabulary: vocabulary of the model.
    data: the text.
    nats: nats of each token of `vocabulary.encode(data)`.

  Returns:
    The characters, their byte offsets in `data`, and their nats in float64.
  """
  text = data.decode('utf-8', 'surrogateescape')
  start = utf8.byte_offsets(text)
  nats = np.asarray(nats, np.float64)
  if vocabulary.kind == 'byte':
    nats = np.add.reduceat(nats, start)
  return text, start, nats
