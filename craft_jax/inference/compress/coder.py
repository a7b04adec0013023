"""An entropy coder in 32-bit integers, with one row of each array per stream.

Range asymmetric numeral systems (rANS, arXiv:1311.2540) with bytes as digits.
The state is a number from 2^24 to 2^32 - 1. Coding a symbol of probability
`count / 2^20` multiplies it by the inverse of that, and bytes are written when
it would grow too large. Encoding starts at the last symbol, so that decoding
starts at the first. Only `boundaries`, which converts probabilities to counts,
uses floating-point arithmetic.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

BITS = 20  # log2 of the sum of all counts
TOTAL = 1 << BITS
LOWEST = 1 << 24  # the least state, which encoding starts from
# Bytes to refill a state after the largest step, a count of 1, which removes 20
# of at least 24 bits.
MOST_BYTES = 3
_FINE = 1 << 24  # unit in which probabilities are summed


def boundaries(p_BA: Float[Array, 'B A']) -> UInt[Array, 'B A1']:
  """Cumulative counts from 0 to `TOTAL`; each symbol has a count of at least 1.

  Floating-point sums might not be monotonic, so integers are summed and then
  scaled. Conversion, multiplication and floor are monotonic, which makes the
  counts valid for any probabilities. A1 is A + 1.

  Args:
    p_BA: probabilities with a sum near 1, float32; A is at least 2.
  """
  A = p_BA.shape[1]
  sum_BA = jnp.cumsum((p_BA * _FINE).astype(jnp.int32), axis=1)
  scale_B1 = (TOTAL - A) / sum_BA[:, -1:].astype(jnp.float32)
  scaled_BA = jnp.floor(sum_BA.astype(jnp.float32) * scale_B1)
  count_BA = jnp.minimum(scaled_BA.astype(jnp.int32), TOTAL - A)
  index_1A = jnp.arange(1, A + 1)[None]
  end_BA = jnp.where(index_1A == A, TOTAL, count_BA + index_1A)
  return jnp.pad(end_BA, ((0, 0), (1, 0))).astype(jnp.uint32)


def interval(
  bound_BA1: UInt[Array, 'B A1'], symbol_B: Int[Array, 'B']
) -> tuple[UInt[Array, 'B'], UInt[Array, 'B']]:
  """Start and count of a symbol in each row; larger symbols act as the last."""
  index_B1 = jnp.minimum(symbol_B, bound_BA1.shape[1] - 2)[:, None]
  start_B1 = jnp.take_along_axis(bound_BA1, index_B1, axis=1)
  end_B1 = jnp.take_along_axis(bound_BA1, index_B1 + 1, axis=1)
  return start_B1[:, 0], (end_B1 - start_B1)[:, 0]


def slot(state_B: UInt[Array, 'B']) -> UInt[Array, 'B']:
  """The number below `TOTAL` that lies in the next symbol's interval."""
  return state_B & (TOTAL - 1)


def find(
  bound_BA1: UInt[Array, 'B A1'], slot_B: UInt[Array, 'B']
) -> Int[Array, 'B']:
  """The symbol whose interval contains the slot."""
  below_BA = bound_BA1[:, 1:] <= slot_B[:, None]
  return jnp.sum(below_BA, axis=1, dtype=jnp.int32)


def pop(
  state_B: UInt[Array, 'B'],
  start_B: UInt[Array, 'B'],
  count_B: UInt[Array, 'B'],
  byte_BN: UInt[Array, 'B N'],
) -> tuple[UInt[Array, 'B'], Int[Array, 'B']]:
  """Decodes a symbol: removes its interval from each state.

  Args:
    state_B: states whose `slot` lies in the interval.
    start_B: start of the interval.
    count_B: count of the interval; 0 leaves the row unchanged.
    byte_BN: next bytes of each stream, uint8; N is `MOST_BYTES`.

  Returns:
    The new states, and the number of bytes that each has consumed.
  """
  some_B = count_B > 0
  popped_B = count_B * (state_B >> BITS) + slot(state_B) - start_B
  state_B = jnp.where(some_B, popped_B, state_B)
  used_B = jnp.zeros(state_B.shape, jnp.int32)
  for i in range(MOST_BYTES):
    low_B = (state_B < LOWEST) & some_B
    filled_B = (state_B << 8) | byte_BN[:, i].astype(jnp.uint32)
    state_B = jnp.where(low_B, filled_B, state_B)
    used_B += low_B
  return state_B, used_B


def push(
  state_B: UInt[Array, 'B'],
  start_B: UInt[Array, 'B'],
  count_B: UInt[Array, 'B'],
) -> tuple[UInt[Array, 'B'], UInt[Array, 'B N'], UInt[Array, 'B N']]:
  """Encodes a symbol: adds its interval to each state, the inverse of `pop`.

  Args:
    state_B: states.
    start_B: start of the interval.
    count_B: count of the interval, below `TOTAL`; 0 leaves the row unchanged.

  Returns:
    The new states, N = `MOST_BYTES` bytes in the order in which `pop` consumes
    them, and a mask (1 or 0) of those that are part of the stream.
  """
  some_B = count_B > 0
  limit_B = count_B << (32 - BITS)
  out, real = [], []
  for _ in range(MOST_BYTES):
    high_B = (state_B >= limit_B) & some_B
    out.append(state_B & 0xFF)
    real.append(high_B)
    state_B = jnp.where(high_B, state_B >> 8, state_B)
  divisor_B = jnp.maximum(count_B, 1)
  quotient_B = state_B // divisor_B
  pushed_B = (quotient_B << BITS) + (state_B - quotient_B * divisor_B) + start_B
  return (
    jnp.where(some_B, pushed_B, state_B),
    jnp.stack(out[::-1], axis=1).astype(jnp.uint8),
    jnp.stack(real[::-1], axis=1).astype(jnp.uint8),
  )


@jax.jit
def push_all(
  state_B: UInt[Array, 'B'],
  start_BC: UInt[Array, 'B C'],
  count_BC: UInt[Array, 'B C'],
) -> tuple[UInt[Array, 'B'], UInt[Array, 'B C N'], UInt[Array, 'B C N']]:
  """Encodes C symbols into each state by `push`, starting with the last."""

  def one(state_B, interval):
    state_B, byte_BN, real_BN = push(state_B, *interval)
    return state_B, (byte_BN, real_BN)

  state_B, (byte_CBN, real_CBN) = jax.lax.scan(
    one, state_B, (start_BC.T, count_BC.T), reverse=True
  )
  return state_B, byte_CBN.swapaxes(0, 1), real_CBN.swapaxes(0, 1)
