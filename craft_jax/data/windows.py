"""Evaluation windows, which score every token but the first exactly once."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from craft_jax.data import pairs as pairs_lib
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.types import Batch

_SMALLEST_BUCKET = 16


def bucket(length: int, context: int) -> int:
  """Padded length of a window: a power of two, at most the context.

  All lengths that are padded alike share a compiled program.
  """
  padded = max(_SMALLEST_BUCKET, 1 << max(length - 1, 0).bit_length())
  return min(padded, context)


def newer_half(context: int) -> int:
  """Tokens that are kept of a full window when it slides."""
  return max(context // 2, 1)


def checked_stride(stride: int, context: int) -> int:
  """The tokens by which windows advance, which are the new ones in each.

  So a token is predicted from at least `context - stride` earlier ones, once
  that many exist.

  Args:
    stride: from 1 to the context; 0 is the context. Windows do not overlap
      then.
    context: tokens of a window.

  Raises:
    UserError: out of range.
  """
  if not 0 <= stride <= context:
    raise UserError(
      f'stride={stride} must be from 0 to model.context={context}'
    )
  return stride or context


def num_eval_windows(num_tokens: int, context: int, stride: int = 0) -> int:
  """Number of windows that cover targets 1 to `num_tokens - 1`.

  Args:
    num_tokens: tokens of the split, at least 2.
    context: T, targets per window.
    stride: tokens by which windows advance; 0 is the context.
  """
  rest = max(num_tokens - 1 - context, 0)
  return 1 + -(-rest // checked_stride(stride, context))


def eval_batches(
  tokens: np.ndarray,
  vocabulary: Vocabulary,
  *,
  context: int,
  batch_size: int,
  stride: int = 0,
  documents: bool = False,
  pairs: bool = False,
) -> Iterator[Batch]:
  """Yields NumPy batches of evaluation windows, in order.

  Window k starts at token `k * stride` and predicts the `context` tokens that
  follow. The first window scores all of them and later ones the last `stride`,
  so that every target from 1 to N - 1 is scored exactly once. Separators
  between documents have weight 0 as targets. Positions past the end, and rows
  that fill up the last batch, are PAD with weight 0.

  Args:
    tokens: tokens of the split, `[N]`, N at least 2.
    vocabulary: vocabulary of the tokens.
    context: T, targets per window.
    batch_size: rows per batch.
    stride: tokens by which windows advance; 0 is the context.
    documents: whether `segment_BT` numbers the documents of a window.
    pairs: whether the tokens are packed pairs, of which completions alone are
      scored, each with the EOS after it; windows must not overlap.

  Raises:
    ValueError: there are fewer than 2 tokens.
    UserError: the stride is out of range.
  """
  if len(tokens) < 2:
    raise ValueError(f'{len(tokens)} tokens hold no target')
  stride = checked_stride(stride, context)
  total = num_eval_windows(len(tokens), context, stride)
  for first in range(0, total, batch_size):
    window = np.arange(first, first + batch_size)[:, None]
    position_BS = window * stride + np.arange(context + 1)
    inside_BS = (position_BS < len(tokens)) & (window < total)
    window_BS: Any = np.where(
      inside_BS,
      tokens[np.minimum(position_BS, len(tokens) - 1)],
      vocabulary.pad,
    ).astype(np.int32)
    new_BT = (np.arange(context) >= context - stride) | (window == 0)
    x_BT, y_BT = window_BS[:, :-1], window_BS[:, 1:]
    weight_BT: Any = inside_BS[:, 1:] & new_BT & (y_BT != vocabulary.bos)
    if pairs:
      weight_BT &= pairs_lib.learnt(x_BT, vocabulary.eos, np)
    segment_BT: Any
    if documents:
      segment_BT = pairs_lib.segments(x_BT, vocabulary.bos, np)
    else:
      segment_BT = np.zeros_like(x_BT)
    yield Batch(x_BT, y_BT, weight_BT.astype(np.float32), segment_BT)
