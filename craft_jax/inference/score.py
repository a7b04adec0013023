"""The nats of each token of a text, window by window.

A text is an array of tokens of which the first is given and never scored;
`sampling.prompt.start_tokens` is what stands there for a text that has nothing
before it.
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

# `-ln p` of each target, then the logarithms of the highest probabilities in
# its place, falling, and whose they are.
Scored = tuple[Float[Array, 'B T'], Float[Array, 'B T K'], Int[Array, 'B T K']]

T = TypeVar('T')
_MOST_ROWS = 64
_MOST_LOGITS = 1 << 26  # of one dispatch: 256 MiB in float32
MOST_READS = _MOST_LOGITS  # tokens of one dispatch, where nobody waits for it


class Piece(NamedTuple):
  """The scores of some neighbouring tokens.

  Attributes:
    text: index of the text.
    first: index of the first of them, the given token not counted.
    nats: float32 `[n]`, `-ln p` of each.
    top: float32 `[n, K]`, `ln p` of the most likely tokens there, falling.
    top_ids: int32 `[n, K]`, these tokens; of equals the lower id comes first.
  """

  text: int
  first: int
  nats: np.ndarray
  top: np.ndarray
  top_ids: np.ndarray


class _Row(NamedTuple):
  """A window: inputs from `start`; targets before `skip` are scored already."""

  text: int
  start: int
  skip: int


def stride_of(stride: int, context: int) -> int:
  """`checked_stride` of a score, by default half of the context."""
  return checked_stride(stride, context, newer_half(context))


def window_reads(length: int, context: int) -> int:
  """Tokens of each window in which a text of `length` ids is read, padded."""
  return bucket(max(length - 1, 1), context)


def num_reads(length: int, context: int, stride: int = 0) -> int:
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
  """The scores of each target, with `num_top` others."""
  logits_BTV = model.apply(params, x_BT, segment_BT)
  nats_BT = token_losses(logits_BTV, y_BT)[1]
  if not num_top:  # not even a search for none
    none_BTK = logits_BTV[..., :0]
    return nats_BT, none_BTK, none_BTK.astype(jnp.int32)
  log_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
  return nats_BT, *jax.lax.top_k(log_BTV, num_top)


def score_pieces(
  model: Model,
  params: Params,
  texts: Sequence[np.ndarray],
  *,
  stride: int = 0,
  separator: int | None = None,
  num_top: int = 0,
  most_reads: int = MOST_READS,
) -> Iterator[Piece]:
  """Scores every token of every text but its first, once.

  The windows of a text are those of a strided evaluation
  (`data.windows.eval_batches`): each starts `stride` tokens after the one
  before and scores what is new, so a token is predicted from at least
  `context - stride` earlier ones, once that many exist. Windows of several
  texts share a batch; no more than a batch of logits exists at a time.

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
    The pieces of a text in order; texts may take turns.

  Raises:
    ValueError: a text without a token to score, or an impossible stride.
  """
  stride = stride_of(stride, model.context)
  if any(len(tokens) < 2 for tokens in texts):
    raise ValueError('every text needs a token after the given one')
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
  stride: int = 0,
  separator: int | None = None,
) -> np.ndarray:
  """`-ln p` of every token but the first, float32 `[N - 1]`.

  See `score_pieces` for the arguments.
  """
  pieces = score_pieces(
    model, params, [tokens], stride=stride, separator=separator
  )
  return np.concatenate([piece.nats for piece in pieces])


def texts_scores(
  model: Model,
  params: Params,
  texts: Sequence[np.ndarray],
  *,
  stride: int = 0,
  num_top: int = 0,
) -> list[Piece]:
  """Each text as one `Piece`, batched over all of them."""
  return finished(
    texts_steps(model, params, texts, stride=stride, num_top=num_top)
  )


def finished(steps: Generator[Any, None, T]) -> T:
  """What a generator returns in the end."""
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
  stride: int = 0,
  num_top: int = 0,
  most_reads: int = MOST_READS,
) -> Generator[int, None, list[Piece]]:
  """`texts_scores` by windows; yields the tokens that each has read."""
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
  """Full batches of windows of one bucket, then the rest of each bucket."""
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
  """The windows of all texts, each with its bucket."""
  for i, tokens in enumerate(texts):
    # All windows of a text are of one bucket, which keeps them in order.
    T = bucket(len(tokens) - 1, context)
    for k in range(num_eval_windows(len(tokens), context, stride)):
      yield T, _Row(i, k * stride, context - stride if k else 0)


def _rows_of_batch(vocabulary_size: int, T: int, most_reads: int) -> int:
  """Rows of a full batch: a power of two, fewer where it would be too large."""
  most = min(_MOST_LOGITS // vocabulary_size, most_reads)
  fit = max(most // T, 1)
  return min(1 << (fit.bit_length() - 1), _MOST_ROWS)


def _arrays(
  texts: Sequence[np.ndarray], rows: list[_Row], T: int
) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets `[B, T]`, filled up with zeros, B a power of two."""
  B = 1 << (len(rows) - 1).bit_length()
  window_BS = np.zeros((B, T + 1), np.int32)
  for i, row in enumerate(rows):
    tokens = texts[row.text][row.start : row.start + T + 1]
    window_BS[i, : len(tokens)] = tokens
  return window_BS[:, :-1], window_BS[:, 1:]


def _pieces(
  texts: Sequence[np.ndarray], rows: list[_Row], scored: Scored
) -> Iterator[Piece]:
  """What the windows of a batch score, padding left out."""
  of_rows = zip(*jax.device_get(scored), strict=True)
  for row, arrays in zip(rows, of_rows, strict=False):
    part = slice(row.skip, len(texts[row.text]) - 1 - row.start)
    found = [array[part] for array in arrays]
    yield Piece(row.text, row.start + row.skip, *found)


def characters(
  vocabulary: Vocabulary, data: bytes, nats: np.ndarray
) -> tuple[str, np.ndarray, np.ndarray]:
  """The characters of a text with their scores.

  The nats of a character are the sum over its bytes where those are the
  tokens. A byte that is not UTF-8 is a character of its own, the surrogate
  U+DC80 to U+DCFF.

  Args:
    vocabulary: 'byte' or 'char'.
    data: the text.
    nats: of each token of `vocabulary.encode(data)`.

  Returns:
    The characters, the offset of each in `data`, its nats in float64.
  """
  text = data.decode('utf-8', 'surrogateescape')
  start = utf8.byte_offsets(text)
  nats = np.asarray(nats, np.float64)
  if vocabulary.kind == 'byte':
    nats = np.add.reduceat(nats, start)
  return text, start, nats
