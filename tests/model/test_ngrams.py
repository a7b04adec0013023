"""Rows of the n-gram tables, told from a text by plain loops."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.model import ngrams

V = 5


def rows(tokens, segments, longest, num_rows):
  """`[n, T]` of one text."""
  position_BT = jnp.arange(len(tokens))[None]
  found = ngrams.rows(
    jnp.asarray(tokens)[None],
    jnp.asarray(segments)[None],
    position_BT,
    longest,
    num_rows,
    V,
  )
  return np.asarray(found)[:, 0]


def gram(tokens, segments, end, length):
  """What the n-gram at a place is: None before the start of its document."""
  return tuple(
    tokens[i] if i >= 0 and segments[i] == segments[end] else None
    for i in range(end - length + 1, end + 1)
  )


def test_a_row_for_each():
  """With room for all, two places share a row only if their n-grams agree."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(V, size=400).tolist()
  segments = np.cumsum(rng.random(400) < 0.1).tolist()
  found_nT = rows(tokens, segments, 3, V * (V + 1) ** 2)
  for length, row_T in zip((2, 3), found_nT, strict=True):
    seen = {}
    for end, row in enumerate(row_T.tolist()):
      seen.setdefault(gram(tokens, segments, end, length), set()).add(row)
    assert all(len(of) == 1 for of in seen.values())
    assert len(set.union(*seen.values())) == len(seen)
    assert min(row_T) >= 0 and max(row_T) < V * (V + 1) ** (length - 1)


@pytest.mark.parametrize('num_rows', [64, 97])
def test_hashed_rows_are_used_evenly(num_rows):
  """Too few rows: all of them serve, none much more often than others."""
  texts = list(itertools.product(range(V), repeat=4))
  row_R = [rows(text, [0] * 4, 4, num_rows)[-1, -1] for text in texts[::5]]
  counts = np.bincount(row_R, minlength=num_rows)
  assert len(counts) == num_rows
  assert counts.max() < 8 * len(row_R) / num_rows
