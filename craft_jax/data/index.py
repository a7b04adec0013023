"""Shuffling without state: where each window starts, in uint32 arithmetic.

Every training sequence has a number, its *sample*: `data_index * batch_size +
row`. The samples of an epoch visit every possible start once, in an order that
depends only on the seed and the epoch. A run can therefore resume from any data
index, on any number of devices or hosts.

`xp` is numpy or jax.numpy; both give the same numbers.
"""

from types import ModuleType
from typing import Any

import jax
import numpy as np

from craft_jax.errors import UserError

ROUNDS = 24
LIMIT = 2**32  # exclusive bound on samples per run and tokens per split

# Constants of the hash "lowbias32" (Chris Wellons, hash-prospector), and the
# golden ratio in 32 bits, which spreads small counters.
_MIX_A, _MIX_B, _GOLDEN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9


def check_samples(
  steps: int, batch_size: int, num_tokens: int, context: int
) -> None:
  """Checks that sample numbers and positions fit 32 bits.

  Args:
    steps: steps of the whole run, plus batches skipped by rollbacks.
    batch_size: sequences per step.
    num_tokens: tokens of the training split.
    context: targets per sequence.

  Raises:
    UserError: they do not, or the split is shorter than a window.
  """
  if steps * batch_size >= LIMIT:
    raise UserError(
      f'train.steps={steps} x train.batch_size={batch_size} is '
      f'{steps * batch_size:,} sequences; at most {LIMIT - 1:,} can be '
      'numbered, so lower one of them'
    )
  if num_tokens >= LIMIT:
    raise UserError(
      f'the train split has {num_tokens:,} tokens; at most {LIMIT - 1:,} '
      'can be addressed, so give less text'
    )
  if num_tokens <= context:
    raise UserError(
      f'the train split has {num_tokens} tokens, fewer than the '
      f'{context + 1} that model.context={context} needs; give more text or '
      'lower model.context'
    )


def num_starts(num_tokens: int, context: int, order: str) -> int:
  """Number of sequences in an epoch: every offset, or every whole window.

  Args:
    num_tokens: length of the token array.
    context: targets per sequence; a sequence reads `context + 1` tokens.
    order: 'crops' or 'windows'.
  """
  if order == 'crops':
    return num_tokens - context
  return (num_tokens - 1) // context


def start_of(
  sample: Any,
  num_tokens: int,
  context: int,
  order: str,
  seed: int,
  xp: ModuleType,
) -> Any:
  """Position in the token array at which each sample starts.

  Args:
    sample: sample numbers, uint32, any shape.
    num_tokens: length of the token array, below 2**32.
    context: targets per sequence.
    order: 'crops' starts anywhere, 'windows' at multiples of `context`.
    seed: seed of the run.
    xp: numpy or jax.numpy.

  Returns:
    uint32 in the shape of `sample`, at most `num_tokens - context - 1`.
  """
  n = num_starts(num_tokens, context, order)
  stride = 1 if order == 'crops' else context
  epoch = sample // xp.uint32(n)
  key = _mix(_mix(epoch, xp) ^ xp.uint32(_seed32(seed)), xp)
  return xp.uint32(stride) * permute(sample % xp.uint32(n), n, key, xp)


def permute(i: Any, n: int, key: Any, xp: ModuleType) -> Any:
  """Applies a pseudorandom permutation of `[0, n)`, chosen by `key`.

  The swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012). A round
  pairs x with `(k - x) mod n`, and a hashed bit of the pair decides whether
  they are swapped. Each round is its own inverse, so the result is a bijection
  for every n; a block cipher would need a power of two, and a loop of unknown
  length to reject values past n.

  Args:
    i: uint32 in `[0, n)`, any shape.
    n: size of the range, from 1 to 2**32 - 1.
    key: uint32 in the shape of `i`.
    xp: numpy or jax.numpy.

  Returns:
    uint32 in the shape of `i`.
  """
  i, key = xp.asarray(i, xp.uint32), xp.asarray(key, xp.uint32)
  shape = i.shape
  i, key = i.reshape(-1), key.reshape(-1)  # NumPy warns when scalars overflow
  rounds = xp.arange(1, ROUNDS + 1, dtype=xp.uint32) * xp.uint32(_GOLDEN)
  keys = _mix(key[None, :] ^ rounds[:, None], xp)
  n = xp.uint32(n)

  def one_round(x: Any, round_key: Any) -> Any:
    k = round_key % n
    partner = xp.where(k >= x, k - x, k - x + n)
    pair = _mix(xp.maximum(x, partner) ^ _rotated(round_key, xp), xp)
    return xp.where(pair >> xp.uint32(31) == xp.uint32(1), partner, x)

  if xp is np:
    for round_key in keys:
      i = one_round(i, round_key)
  else:
    # Six rounds per iteration: unrolled, all 24 take 0.3 s to compile on a CPU;
    # not unrolled, they are 24 small kernels on a GPU.
    i, _ = jax.lax.scan(lambda x, k: (one_round(x, k), None), i, keys, unroll=6)
  return i.reshape(shape)


def samples_of(
  data_index: Any, batch_size: int, rows: slice, xp: ModuleType
) -> Any:
  """Sample numbers of some rows of a batch, uint32 `[rows]`."""
  row = xp.arange(*rows.indices(batch_size), dtype=xp.uint32)
  first = xp.asarray(data_index).astype(xp.uint32).reshape(1)
  return first * xp.uint32(batch_size) + row


def _mix(x: Any, xp: ModuleType) -> Any:
  """The bijective 32-bit hash "lowbias32"."""
  x = x ^ (x >> xp.uint32(16))
  x = x * xp.uint32(_MIX_A)
  x = x ^ (x >> xp.uint32(15))
  x = x * xp.uint32(_MIX_B)
  return x ^ (x >> xp.uint32(16))


def _rotated(x: Any, xp: ModuleType) -> Any:
  """Rotates by 16 bits, to get a second key out of a round's key."""
  return (x << xp.uint32(16)) | (x >> xp.uint32(16))


def _seed32(seed: int) -> int:
  """Folds a seed into 32 bits; seeds below 2**32 stay distinct."""
  folded = 0
  while seed:
    folded ^= seed & (LIMIT - 1)
    seed >>= 32
  return folded


def window_index(start: Any, context: int, xp: ModuleType) -> Any:
  """Positions of each sequence's tokens, uint32 `[rows, context + 1]`."""
  return start[:, None] + xp.arange(context + 1, dtype=xp.uint32)[None, :]
