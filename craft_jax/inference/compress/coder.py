"""An entropy coder in 32-bit integers, a row of every array per stream.

Range asymmetric numeral systems (rANS, arXiv:1311.2540) with bytes as digits.
A state holds a number from 2^24 to 2^32 - 1; coding a symbol of probability
`count / 2^20` multiplies it by the inverse of that, digits go out when it
would grow too large. Coding starts at the last symbol, so that decoding
starts at the first. All is integer arithmetic but for `boundaries`, the one
place where probabilities become counts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

BITS = 20  # of the total of all counts
TOTAL = 1 << BITS
LOWEST = 1 << 24  # the least state, and the one that coding starts from
# A count of 1 takes 20 of at least 24 bits; so many bytes come back.
MOST_BYTES = 3
_FINE = 1 << 24  # probabilities are summed in these units


def boundaries(p_BA: Float[Array, 'B A']) -> UInt[Array, 'B A1']:
  """Cumulative counts, from 0 to `TOTAL`; each symbol has at least 1.

  Rounded sums could fall or miss the total, so the sums are of integers and
  only then scaled: conversion, product and floor keep their order, which
  makes the counts valid for any probabilities. A1 is A + 1.

  Args:
    p_BA: from 0 to 1, with a sum near 1; A is at least 2.
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
  """Start and count of a symbol per row; that of the last for one past it."""
  index_B1 = jnp.minimum(symbol_B, bound_BA1.shape[1] - 2)[:, None]
  start_B1 = jnp.take_along_axis(bound_BA1, index_B1, axis=1)
  end_B1 = jnp.take_along_axis(bound_BA1, index_B1 + 1, axis=1)
  return start_B1[:, 0], (end_B1 - start_B1)[:, 0]


def slot(state_B: UInt[Array, 'B']) -> UInt[Array, 'B']:
  """A number below `TOTAL`, in the interval of the next symbol."""
  return state_B & (TOTAL - 1)


def find(
  bound_BA1: UInt[Array, 'B A1'], slot_B: UInt[Array, 'B']
) -> Int[Array, 'B']:
  """The symbol in whose interval the slot is."""
  below_BA = bound_BA1[:, 1:] <= slot_B[:, None]
  return jnp.sum(below_BA, axis=1, dtype=jnp.int32)


def pop(
  state_B: UInt[Array, 'B'],
  start_B: UInt[Array, 'B'],
  count_B: UInt[Array, 'B'],
  byte_BN: UInt[Array, 'B N'],
) -> tuple[UInt[Array, 'B'], Int[Array, 'B']]:
  """Takes the symbol of an interval off each state.

  Args:
    state_B: whose `slot` is in the interval.
    start_B: of the interval.
    count_B: of the interval; 0 leaves the row as it is.
    byte_BN: the next bytes of each stream; N is `MOST_BYTES`.

  Returns:
    The states, and how many of the bytes went into each.
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
  """Puts the symbol of an interval onto each state, undone by `pop`.

  Args:
    state_B: states.
    start_B: of the interval.
    count_B: of the interval, below `TOTAL`; 0 leaves the row as it is.

  Returns:
    The states, the bytes that `pop` will want in its order, and 1 for each of
    these N = `MOST_BYTES` that is one, 0 for the rest.
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
  """Puts C symbols onto each state, the last one first; as `push`."""

  def one(state_B, interval):
    state_B, byte_BN, real_BN = push(state_B, *interval)
    return state_B, (byte_BN, real_BN)

  state_B, (byte_CBN, real_CBN) = jax.lax.scan(
    one, state_B, (start_BC.T, count_BC.T), reverse=True
  )
  return state_B, byte_CBN.swapaxes(0, 1), real_CBN.swapaxes(0, 1)
