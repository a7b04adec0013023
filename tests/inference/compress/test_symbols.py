"""Any bytes become values and come back, with any vocabulary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.compress import symbols

BYTES = Vocabulary.byte()
LETTERS = Vocabulary('char', 'abc é\n')
STRANGE = Vocabulary('char', 'a\udc80\ud800\U0001f600', unknown='replace')
VOCABULARIES = [BYTES, LETTERS, STRANGE]
PLANES = ''.join(chr(plane << 16 | 0x1234) for plane in range(17))

_MIXED = st.lists(
  st.sampled_from([b'abc', b'\xc3\xa9', b'\x80', b'\xff', b'\xed\xa0\x80',
                   '\U0001f600'.encode(), b'\xc3', b'zz' * 200, b'\x00']),
).map(b''.join)  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary() | st.text().map(str.encode) | _MIXED, st.integers(1, 9))
def test_round_trip(data, streams):
  parts = symbols.cut(data, streams)
  assert len(parts) == streams and b''.join(parts) == data
  for vocabulary in VOCABULARIES:
    for part in parts:
      values = symbols.to_values(vocabulary, part)
      assert values.dtype == np.int32 and values.ndim == 1
      assert len(values) <= 3 * len(part)
      assert symbols.to_bytes(vocabulary, values) == part


def test_what_is_covered_is_one_value_each():
  values = symbols.to_values(LETTERS, 'aé\n'.encode())
  assert values.tolist() == [0, 4, 5]


def test_what_is_not_goes_by_runs_of_raw_bytes():
  escape = symbols.escape(LETTERS)
  data = 'a—b\x00'.encode()
  values = symbols.to_values(LETTERS, data)
  assert values.tolist() == [
    0, escape, 2, *'—'.encode(), 1, escape, 0, 0,
  ]  # fmt: skip
  long = b'z' * 600
  values = symbols.to_values(LETTERS, long)
  assert len(values) == 600 + 3 * 2 and values[1] == 255
  assert symbols.to_bytes(LETTERS, values) == long


def test_every_plane():
  data = PLANES.encode()
  for vocabulary in VOCABULARIES:
    values = symbols.to_values(vocabulary, data)
    assert symbols.to_bytes(vocabulary, values) == data


def test_parts_are_even_and_cut_no_character():
  data = ('é' * 500).encode()
  parts = symbols.cut(data, 7)
  for part in parts:
    assert part.decode() and abs(len(part) - 1000 / 7) < 3


@pytest.mark.parametrize('left_out', [1, 2, 3])
def test_a_run_without_an_end(left_out):
  values = symbols.to_values(LETTERS, b'azz')
  with pytest.raises(ValueError, match='has no end'):
    symbols.to_bytes(LETTERS, values[:-left_out])


@pytest.mark.parametrize(
  'size, streams',
  [(0, 1), (4095, 1), (4096, 2), (20000, 8), (10**6, 64), (10**9, 64)],
)
def test_streams_by_size(size, streams):
  assert symbols.choose_streams(size) == streams
