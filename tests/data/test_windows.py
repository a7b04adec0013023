"""Evaluation windows cover every character but the first exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.data import windows
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

BYTE = Vocabulary.byte()


@given(data=st.data(), context=st.integers(1, 12), size=st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_each_target_counts_once(data, context, size):
  n = data.draw(st.integers(2, 80))
  stride = data.draw(st.integers(0, context))
  bos = data.draw(st.sets(st.integers(0, n - 1), max_size=5))
  tokens = np.arange(n, dtype=np.uint16)
  tokens[list(bos)] = BYTE.bos
  counted = np.zeros(n, int)
  batches = list(
    windows.eval_batches(
      tokens, BYTE, context=context, batch_size=size, stride=stride
    )
  )
  count = windows.num_eval_windows(n, context, stride)
  assert len(batches) == -(-count // size)
  row = 0
  for b in batches:
    assert all(part.shape == (size, context) for part in b)
    for x, y, weight in zip(b.x_BT, b.y_BT, b.weight_BT, strict=True):
      for t in np.flatnonzero(weight):
        position = row * (stride or context) + t + 1
        assert y[t] == tokens[position] and x[t] == tokens[position - 1]
        # A long enough past: what the stride promises.
        assert t >= min(context - (stride or context), position - 1)
        counted[position] += 1
      row += 1
  expected = np.ones(n, int)
  expected[[0, *bos]] = 0
  assert np.array_equal(counted, expected)


def test_contents_of_a_ragged_end():
  tokens = np.array([10, 11, 12, 256, 14, 15], np.uint16)
  (b,) = windows.eval_batches(
    tokens, BYTE, context=3, batch_size=3, documents=True
  )
  pad = BYTE.pad
  assert b.x_BT.tolist() == [[10, 11, 12], [256, 14, 15], [pad] * 3]
  assert b.y_BT.tolist() == [[11, 12, 256], [14, 15, pad], [pad] * 3]
  assert b.weight_BT.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
  assert b.segment_BT.tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
  assert [part.dtype for part in b] == ['int32', 'int32', 'float32', 'int32']


def test_strided_windows_overlap():
  tokens = np.arange(9, dtype=np.uint16)
  (b,) = windows.eval_batches(tokens, BYTE, context=4, batch_size=3, stride=2)
  assert b.x_BT.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
  assert b.weight_BT.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_impossible_arguments():
  tokens = np.arange(9, dtype=np.uint16)
  with pytest.raises(UserError, match='stride'):
    next(windows.eval_batches(tokens, BYTE, context=4, batch_size=1, stride=5))
  with pytest.raises(ValueError, match='no target'):
    next(windows.eval_batches(tokens[:1], BYTE, context=4, batch_size=1))
