"""Cutting text by fraction and files by hash."""

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.data import splits
from craft_jax.data.sources import Document
from craft_jax.errors import UserError


def sizes(parts):
  return {
    name: sum(splits.num_characters(text) for _, text in part)
    for name, part in parts.items()
  }


def test_the_published_split_of_tinyshakespeare():
  parts = splits.by_fraction([('t', 'x' * 1_115_394)], 0.1, 0.0)
  assert sizes(parts) == {'train': 1_003_854, 'valid': 111_540}


@given(
  texts=st.lists(st.text(min_size=1), min_size=1, max_size=6),
  valid=st.floats(0.05, 0.5),
  test=st.sampled_from([0.0, 0.2]),
  as_bytes=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_by_fraction_keeps_all_text_in_order(texts, valid, test, as_bytes):
  total = sum(map(len, texts))
  documents = [
    (str(i), t.encode('utf-8') if as_bytes else t) for i, t in enumerate(texts)
  ]
  try:
    parts = splits.by_fraction(documents, valid, test)
  except UserError:
    cuts = [0, int(total * (1 - valid - test)), int(total * (1 - test))]
    cuts += [total] if test else []
    assert any(a == b for a, b in itertools.pairwise(cuts))
    return
  assert list(parts) == ['train', 'valid'] + (['test'] if test else [])
  joined = [piece for part in parts.values() for piece in part]
  for name, text in documents:
    pieces = [piece for other, piece in joined if other == name]
    assert type(text)().join(pieces) == text
    if as_bytes:
      for piece in pieces:
        piece.decode('utf-8')  # no character is cut
  assert all(text for _, text in joined)
  assert sizes(parts)['train'] == int(total * (1 - valid - test))


def test_bytes_that_are_not_utf8_are_cut_by_bytes():
  parts = splits.by_fraction([('t', b'\xff' * 10)], 0.3, 0.0)
  assert sizes(parts) == {'train': 7, 'valid': 3}


def test_too_short_a_text():
  with pytest.raises(UserError, match='leave the train part empty'):
    splits.by_fraction([('t', 'x')], 0.1, 0.0)
  with pytest.raises(UserError, match='leave the test part empty'):
    splits.by_fraction([('t', 'xyz')], 0.4, 1e-17)


def documents(n, prefix='file'):
  return [
    Document(f'{prefix}{i}.txt', functools.partial(bytes, b'x'))
    for i in range(n)
  ]


def test_by_file_is_stable_and_proportional():
  few, many = documents(300), documents(600)
  small = splits.by_file(few, 0.2, 0.1)
  large = splits.by_file(many, 0.2, 0.1)
  assert 35 < len(small['valid']) < 85 and 10 < len(small['test']) < 55
  assert sum(map(len, small.values())) == 300
  for name in small:
    names = [d.name for d in large[name]]
    assert [d.name for d in small[name]] == names[: len(small[name])]


@pytest.mark.parametrize('n', [2, 3, 4, 7])
def test_by_file_leaves_no_part_empty(n):
  for prefix in 'abcdefgh':
    parts = splits.by_file(documents(n, prefix), 0.01, 0.0)
    assert list(parts) == ['train', 'valid']
    assert all(parts.values())
    parts = splits.by_file(documents(n, prefix), 0.9, 0.0)
    assert all(parts.values())
  if n > 2:
    parts = splits.by_file(documents(n), 0.01, 0.01)
    assert all(parts.values()) and len(parts) == 3


def test_by_file_needs_enough_documents():
  with pytest.raises(UserError, match='at least 2 documents'):
    splits.by_file(documents(1), 0.1, 0.0)
  with pytest.raises(UserError, match='at least 3 documents'):
    splits.by_file(documents(2), 0.1, 0.1)
