"""The coder alone, beside the same arithmetic in Python's own integers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.inference.compress import coder

B, C, A = 3, 40, 7  # of every example, so that little is compiled
_boundaries = jax.jit(coder.boundaries)
_push = jax.jit(coder.push)
_pop = jax.jit(coder.pop)


@jax.jit
def _pop_all(state_B, bound_CBA1, live_CB, byte_BW):
  """As the codec decodes: symbols, the last state, bytes used."""

  def one(carry, table):
    state_B, used_B = carry
    bound_BA1, live_B = table
    slot_B = coder.slot(state_B)
    symbol_B = coder.find(bound_BA1, slot_B)
    start_B, count_B = coder.interval(bound_BA1, symbol_B)
    count_B = jnp.where(live_B, count_B, jnp.uint32(0))
    at_BN = used_B[:, None] + jnp.arange(coder.MOST_BYTES)[None]
    byte_BN = jnp.take_along_axis(byte_BW, at_BN, axis=1)
    state_B, new_B = coder.pop(state_B, start_B, count_B, byte_BN)
    return (state_B, used_B + new_B), symbol_B

  start = (state_B, jnp.zeros(B, jnp.int32))
  (state_B, used_B), symbol_CB = jax.lax.scan(one, start, (bound_CBA1, live_CB))
  return symbol_CB.T, state_B, used_B


def reference(intervals):
  """The stream of one row, by the definition: integers without a width.

  The text is one number, coded from its last symbol to the first; digits to
  base 256 leave it as soon as the next symbol would bring it to 2^32.
  """
  number, digits = 1 << 24, []
  for start, count in reversed(intervals):
    while number // count * coder.TOTAL + number % count + start >= 1 << 32:
      number, digit = divmod(number, 256)
      digits.append(digit)
    number = number // count * coder.TOTAL + number % count + start
  return number, bytes(digits[::-1])


def tables(seed, sharpness):
  """Random counts, and symbols that are random too, often unlikely ones."""
  rng = np.random.default_rng(seed)
  logits = sharpness * rng.normal(size=(C * B, A))
  p = np.exp(logits - logits.max(axis=1, keepdims=True))
  p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
  bound_CBA1 = np.array(_boundaries(p)).reshape(C, B, A + 1)
  return bound_CBA1, rng.integers(A, size=(C, B))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
  st.integers(0, 2**32 - 1),
  st.floats(0, 40),
  st.lists(st.integers(0, C), min_size=B, max_size=B),
)
def test_streams_are_those_of_exact_integers(seed, sharpness, lengths):
  bound_CBA1, symbol_CB = tables(seed, sharpness)
  at = (np.arange(C)[:, None], np.arange(B)[None])
  start_CB = bound_CBA1[*at, symbol_CB]
  count_CB = bound_CBA1[*at, symbol_CB + 1] - start_CB
  live_CB = np.arange(C)[:, None] < np.array(lengths)[None]
  count_CB = np.where(live_CB, count_CB, 0).astype(np.uint32)

  first_B = np.full(B, coder.LOWEST, np.uint32)
  state_B, byte_BCN, real_BCN = map(
    np.array, coder.push_all(first_B, start_CB.T, count_CB.T)
  )
  byte_BW = np.zeros((B, C * coder.MOST_BYTES), np.uint8)
  for row, n in enumerate(lengths):
    stream = byte_BCN[row][real_BCN[row] > 0].tobytes()
    intervals = [
      (int(start_CB[c, row]), int(count_CB[c, row])) for c in range(n)
    ]
    assert (int(state_B[row]), stream) == reference(intervals)
    # No longer than the exact product of the probabilities allows, but for
    # the state and what the rounding of the quotient costs.
    exact = sum(coder.BITS - math.log2(count) for _, count in intervals)
    assert 8 * len(stream) <= exact + 8 + 0.02 * n
    byte_BW[row, : len(stream)] = np.frombuffer(stream, np.uint8)

  found_BC, last_B, used_B = _pop_all(state_B, bound_CBA1, live_CB, byte_BW)
  for row, n in enumerate(lengths):
    assert found_BC[row, :n].tolist() == symbol_CB[:n, row].tolist()
    assert used_B[row] == real_BCN[row].sum()
  assert (np.array(last_B) == coder.LOWEST).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
  st.integers(coder.LOWEST, 2**32 - 1),
  st.integers(0, coder.TOTAL - 1),
  st.integers(1, coder.TOTAL - 1),
)
def test_pop_undoes_push_from_any_state(state, start, count):
  count = min(count, coder.TOTAL - start)
  if count == coder.TOTAL:
    count -= 1
  arrays = [np.array([x] * B, np.uint32) for x in (state, start, count)]
  pushed_B, byte_BN, real_BN = map(np.array, _push(*arrays))
  assert coder.LOWEST <= pushed_B[0] < 2**32
  assert start <= int(pushed_B[0]) % coder.TOTAL < start + count
  wanted = byte_BN[0][real_BN[0] > 0]
  padded_BN = np.zeros((B, coder.MOST_BYTES), np.uint8)
  padded_BN[:, : len(wanted)] = wanted
  popped_B, used_B = _pop(pushed_B, *arrays[1:], padded_BN)
  assert popped_B.tolist() == [state] * B
  assert used_B.tolist() == [len(wanted)] * B


@pytest.mark.parametrize('size', [2, 3, 66, 256, 65533])
@pytest.mark.parametrize('sharpness', [0, 1, 5, 30, 1000])
def test_counts_are_valid_and_near(size, sharpness):
  rng = np.random.default_rng(size)
  logits = sharpness * rng.normal(size=(4, size))
  p_BA = np.array(jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=1))
  bound_BA1 = np.array(_boundaries(p_BA)).astype(np.int64)
  count_BA = np.diff(bound_BA1, axis=1)
  assert (bound_BA1[:, 0] == 0).all() and (count_BA >= 1).all()
  assert (bound_BA1[:, -1] == coder.TOTAL).all()
  want_BA = 1 + p_BA * (coder.TOTAL - size)
  # A probability below 2^-24 counts as nothing, in each of the sums.
  slack = 2 + want_BA * (1e-6 + size / 2**24)
  assert (abs(count_BA - want_BA) <= slack).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1, width=32), min_size=A, max_size=A))
def test_counts_are_valid_whatever_the_sum(p):
  bound = np.array(_boundaries(np.array([p], np.float32)))[0].astype(int)
  assert bound[0] == 0 and bound[-1] == coder.TOTAL
  assert (np.diff(bound) >= 1).all()
