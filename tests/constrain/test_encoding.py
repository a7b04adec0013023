"""UTF-8: every plane, exactly the scalar values, nothing else."""

import numpy as np
import oracle
import pytest

from craft_jax.constrain import compile_regex, valid_utf8
from craft_jax.errors import UserError

_PLANES = ''.join(
  chr((plane << 16) + offset)
  for plane in range(17)
  for offset in (0x0, 0x41, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF)
)
# Overlong, surrogates, past the last code point, stray and cut short.
_INVALID = [
  b'\x80', b'\xbf', b'\xc0\x80', b'\xc1\xbf', b'\xc2', b'\xe0\x80\x80',
  b'\xe0\x9f\xbf', b'\xed\xa0\x80', b'\xed\xbf\xbf', b'\xe1\x80',
  b'\xf0\x80\x80\x80', b'\xf0\x8f\xbf\xbf', b'\xf4\x90\x80\x80', b'\xf5',
  b'\xff', b'a\x80', b'\xc3\xa9\xa9',
]  # fmt: skip


def test_valid_utf8_takes_every_plane(byte):
  automaton = valid_utf8(byte)
  assert automaton.num_states == 8
  assert automaton.accepts(byte.encode(_PLANES))
  assert all(automaton.accepts(byte.encode(c)) for c in _PLANES)
  for data in _INVALID:
    assert not automaton.accepts(byte.encode(data)), data


def test_all_code_points_one_by_one(byte):
  automaton = compile_regex(r'[\s\S]', byte)
  codes = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
  for low in range(0, len(codes), 1 << 18):
    texts = list(map(chr, codes[low : low + (1 << 18)]))
    lengths = np.array([len(c.encode()) for c in texts])
    joined = np.frombuffer(''.join(texts).encode(), np.uint8)
    starts = np.cumsum(lengths) - lengths
    matrix = np.full((len(texts), 4), -1)
    for k in range(4):
      matrix[lengths > k, k] = joined[starts[lengths > k] + k]
    assert oracle.accepted(automaton, matrix).all()


def test_random_bytes_agree_with_python(byte):
  rng = np.random.default_rng(0)
  automaton = valid_utf8(byte)
  leads = np.array([0x41, 0x80, 0xBF, 0xC3, 0xE0, 0xED, 0xEF, 0xF0, 0xF4])
  rows = np.concatenate(
    [rng.choice(leads, (20_000, 4)), rng.integers(0, 256, (20_000, 4))]
  )
  found = oracle.accepted(automaton, rows)
  for row, accepts in zip(rows, found, strict=True):
    try:
      bytes(row.tolist()).decode()
    except UnicodeDecodeError:
      assert not accepts, row
    else:
      assert accepts, row


@pytest.mark.parametrize('pattern', ['[à-ÿ]', r'[^\x00-\uffff]', r'\p{Lo}'])
def test_samples_are_in_the_set(pattern, byte):
  rng = np.random.default_rng(1)
  automaton = compile_regex(f'(?:{pattern})*', byte)
  by_character = [
    bytes(oracle.random_text(automaton, rng)).decode() for _ in range(50)
  ]
  single = compile_regex(pattern, byte)
  for token in ''.join(by_character):
    assert single.accepts(byte.encode(token))


def test_bytes_only(chars):
  with pytest.raises(UserError, match='this vocabulary is of characters'):
    valid_utf8(chars)
