"""Pairs as tokens: packing, weights, segments, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.data import batch, pairs, windows
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

BYTE = Vocabulary.byte()
CHAR = Vocabulary.from_text('abcß€😀')
TEXT = st.text('abcß€😀', min_size=1, max_size=6)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=30)


def packed(rows, vocabulary, context):
  return pairs.pack(vocabulary, *map(list, zip(*rows, strict=True)), context)


def slow_windows(tokens, vocabulary, context):
  """For each window its rows, as lists of `(position, is_learnt)`."""
  found = []
  for start in range(0, len(tokens) - 1, context):
    rows, in_completion = [], False
    for position, token in enumerate(tokens[start : start + context]):
      if token == vocabulary.bos:
        rows.append([])
        in_completion, ends = False, 0
      if token == vocabulary.eos:
        ends += 1
        in_completion = ends == 1
      if token != vocabulary.pad:
        rows[-1].append((position, in_completion))
    found.append(rows)
  return found


@pytest.mark.parametrize('vocabulary', [BYTE, CHAR], ids=['byte', 'char'])
@given(rows=ROWS, more=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_each_row_is_packed_once_and_whole(vocabulary, rows, more):
  lengths = [len(vocabulary.encode(p + c)) + 3 for p, c in rows]
  context = max(lengths) + more
  tokens = packed(rows, vocabulary, context)
  assert (len(tokens) - 1) % context == 0
  assert tokens[-1] == vocabulary.pad and tokens.dtype == vocabulary.dtype
  shown = []
  for start in range(0, len(tokens) - 1, context):
    window = vocabulary.show(tokens[start : start + context])
    window = window.replace('<pad>', '')
    assert window.startswith('<bos>')
    for row in window.split('<bos>')[1:]:
      prompt, completion, rest = row.split('<eos>')
      assert rest == ''
      shown.append((prompt, completion))
  assert sorted(shown) == sorted(rows)
  joined: dict[str, dict[str, None]] = {}
  for prompt, completion in shown:
    joined.setdefault(prompt, {})[completion] = None
  assert pairs.rows_of(tokens, vocabulary) == [
    pairs.Pair(p, tuple(several)) for p, several in joined.items()
  ]


@given(
  lengths=st.lists(st.integers(1, 20), max_size=60), more=st.integers(0, 20)
)
@settings(max_examples=100, deadline=None)
def test_rows_do_not_overlap_and_windows_are_full(lengths, more):
  context = max(lengths, default=1) + more
  found = pairs.places(np.array(lengths, np.int64), context)
  used = np.zeros((found.num_windows, context), int)
  for length, window, offset in zip(lengths, *found[:2], strict=True):
    assert offset + length <= context
    used[window, offset : offset + length] += 1
  assert used.max(initial=0) <= 1
  # Best fit opens a window only if no other one has room.
  spare = context - used.sum(1)
  assert np.count_nonzero(spare * 2 >= context) <= 1


@given(rows=ROWS, more=st.integers(0, 40), size=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_weights_and_segments(rows, more, size):
  lengths = [len(CHAR.encode(p + c)) + 3 for p, c in rows]
  context = max(lengths) + more
  tokens = packed(rows, CHAR, context)
  expected = slow_windows(tokens, CHAR, context)
  evaluated = windows.eval_batches(
    tokens, CHAR, context=context, batch_size=size, documents=True, pairs=True
  )
  parts = [np.concatenate(part) for part in zip(*evaluated, strict=True)]
  _, y_BT, weight_BT, segment_BT = parts
  for window, rows_of_window in enumerate(expected):
    learnt = np.zeros(context)
    for number, row in enumerate(rows_of_window, 1):
      for position, is_learnt in row:
        assert segment_BT[window, position] == number
        learnt[position] = is_learnt
    np.testing.assert_array_equal(weight_BT[window], learnt)
  assert not weight_BT[len(expected) :].any()
  learnt_tokens = y_BT[weight_BT > 0]
  assert len(learnt_tokens) == pairs.num_learnt(tokens, CHAR)
  text = CHAR.show(learnt_tokens).split('<eos>')[:-1]
  assert sorted(text) == sorted(completion for _, completion in rows)


def test_training_and_evaluation_agree():
  rows = [(f'{i} * {i}', f'{i * i}') for i in range(50)]
  tokens = packed(rows, BYTE, 32)
  recipe = batch.Recipe(
    256, BYTE.bos, BYTE.unk, documents=True, completions=BYTE.eos
  )
  n = (len(tokens) - 1) // 32
  trained = jax.jit(
    lambda t: batch.batch_at(
      t, jax.random.key(0), 0, batch_size=n, context=32, order='windows',
      seed=0, recipe=recipe,
    )
  )(jnp.asarray(tokens))  # fmt: skip
  (evaluated,) = windows.eval_batches(
    tokens, BYTE, context=32, batch_size=n, documents=True, pairs=True
  )
  order = np.lexsort(np.asarray(trained.x_BT).T)
  other = np.lexsort(evaluated.x_BT.T)
  for name in ('x_BT', 'weight_BT', 'segment_BT'):
    ours = np.asarray(getattr(trained, name))[order]
    np.testing.assert_array_equal(ours, getattr(evaluated, name)[other])
    assert ours.dtype == getattr(evaluated, name).dtype
  # The last target of a window is no part of it.
  assert not np.asarray(trained.weight_BT)[
    np.asarray(trained.y_BT) == BYTE.bos
  ].any()


def test_prompt_tokens():
  tokens = pairs.prompt_tokens(CHAR, 'aß')
  assert CHAR.show(tokens) == '<bos>aß<eos>' and tokens.dtype == CHAR.dtype
  assert BYTE.show(pairs.prompt_tokens(BYTE, '€')) == '<bos>€<eos>'
  with pytest.raises(UserError, match=r'U\+007A'):
    pairs.prompt_tokens(CHAR, 'z')


def test_specials_in_the_text_are_text():
  rows = [('<eos>', '<bos><pad>'), ('a', '<eos>')]
  tokens = packed(rows, BYTE, 64)
  assert {(p, *c) for p, c in pairs.rows_of(tokens, BYTE)} == set(rows)


def test_several_references():
  rows = [('a', 'b'), ('a', 'c'), ('b', 'b'), ('a', 'b')]
  found = dict(pairs.rows_of(packed(rows, CHAR, 20), CHAR))
  assert {p: set(c) for p, c in found.items()} == {'a': {'b', 'c'}, 'b': {'b'}}
  assert len(found['a']) == 2


def test_packing_is_dense():
  rng = np.random.default_rng(0)
  found = pairs.places(lengths := rng.integers(10, 40, 20_000), 128)
  assert lengths.sum() / (found.num_windows * 128) > 0.97
