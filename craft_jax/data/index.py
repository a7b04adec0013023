"""Where the windows of a batch start: arithmetic on unsigned 32-bit numbers.

Every training sequence has a number, its *sample*: `data_index * batch_size +
row`. The samples of one epoch visit every possible start once, in an order
that depends on the seed and the epoch alone. Nothing here is stored between
batches, so a run goes on from any index, on any number of devices or hosts.

Written once for NumPy and jax.numpy: `xp` is either module, and both give the
same numbers.
"""

from types import ModuleType
from typing import Any

import jax
import numpy as np

from craft_jax.errors import UserError

ROUNDS = 24
LIMIT = 2**32  # samples of a run, and tokens of a split, stay below this

# Constants of the finalizer "lowbias32" (Chris Wellons, hash-prospector) and
# the golden ratio in 32 bits, which spreads small counters.
_MIX_A, _MIX_B, _GOLDEN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9


def check_samples(
  steps: int, batch_size: int, num_tokens: int, context: int
) -> None:
  """Raises `UserError` if sample numbers or positions leave 32 bits.

  Args:
    steps: of the whole run, any rollback offset included.
    batch_size: sequences per step.
    num_tokens: tokens of the training split.
    context: targets per sequence.
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
  """Sequences in an epoch: every offset, or every whole window.

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
  """First position of each sample.

  Args:
    sample: sample numbers, uint32, any shape.
    num_tokens: length of the token array, below 2**32.
    context: targets per sequence.
    order: 'crops' starts anywhere, 'windows' at multiples of `context`.
    seed: of the run.
    xp: numpy or jax.numpy.

  Returns:
    uint32 of the shape of `sample`, each at most `num_tokens - context - 1`.
  """
  n = num_starts(num_tokens, context, order)
  stride = 1 if order == 'crops' else context
  epoch = sample // xp.uint32(n)
  key = _mix(_mix(epoch, xp) ^ xp.uint32(_seed32(seed)), xp)
  return xp.uint32(stride) * permute(sample % xp.uint32(n), n, key, xp)


def permute(i: Any, n: int, key: Any, xp: ModuleType) -> Any:
  """A bijection of `[0, n)` for each key.

  The swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012). A round
  pairs x with `(k - x) mod n`, and a hashed bit of the pair decides whether
  the two trade places. Each round is its own inverse, so the whole is a
  bijection for every n, without the rejected draws (and the loop of unknown
  length) of a cipher on a power of two.

  Args:
    i: uint32 in `[0, n)`, any shape.
    n: from 1 to 2**32 - 1.
    key: uint32 of the shape of `i`.
    xp: numpy or jax.numpy.

  Returns:
    uint32 of the shape of `i`.
  """
  i, key = xp.asarray(i, xp.uint32), xp.asarray(key, xp.uint32)
  shape = i.shape
  i, key = i.reshape(-1), key.reshape(-1)  # scalars overflow with a warning
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
    # Six rounds to an iteration: all 24 in a row take 0.3 s to compile on a
    # CPU, one by one they are 24 small kernels on a GPU.
    i, _ = jax.lax.scan(lambda x, k: (one_round(x, k), None), i, keys, unroll=6)
  return i.reshape(shape)


def samples_of(
  data_index: Any, batch_size: int, rows: slice, xp: ModuleType
) -> Any:
  """Sample numbers of `rows` of a batch, uint32 `[rows]`."""
  row = xp.arange(*rows.indices(batch_size), dtype=xp.uint32)
  first = xp.asarray(data_index).astype(xp.uint32).reshape(1)
  return first * xp.uint32(batch_size) + row


def _mix(x: Any, xp: ModuleType) -> Any:
  """A hash of 32 bits to 32 bits, itself a bijection."""
  x = x ^ (x >> xp.uint32(16))
  x = x * xp.uint32(_MIX_A)
  x = x ^ (x >> xp.uint32(15))
  x = x * xp.uint32(_MIX_B)
  return x ^ (x >> xp.uint32(16))


def _rotated(x: Any, xp: ModuleType) -> Any:
  """The same bits in another place, so that pair and bit use other keys."""
  return (x << xp.uint32(16)) | (x >> xp.uint32(16))


def _seed32(seed: int) -> int:
  """Any seed in 32 bits; seeds below 2**32 stay distinct."""
  folded = 0
  while seed:
    folded ^= seed & (LIMIT - 1)
    seed >>= 32
  return folded


def window_index(start: Any, context: int, xp: ModuleType) -> Any:
  """Positions of each sequence, uint32 `[rows, context + 1]`."""
  return start[:, None] + xp.arange(context + 1, dtype=xp.uint32)[None, :]
