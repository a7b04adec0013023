"""Choosing a token equals a plain NumPy reference, edge cases included."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.errors import UserError
from craft_jax.inference.sampling.logits import (
  RowSettings,
  choose,
  keep_typical,
  penalize,
  permit,
  truncate,
)
from craft_jax.inference.sampling.options import SLOTS
from craft_jax.inference.sampling.settings import SampleSettings

V = 24
_jit_truncate = jax.jit(truncate)
_jit_choose = jax.jit(choose)


def reference(logits, top_k, top_p, min_p=0.0):
  """Kept ids, one at a time, most likely first, equals by id."""
  order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
  order = order[: top_k or None]
  weights = np.exp(logits[order].astype(np.float64) - logits.max())
  weights /= weights.sum()
  kept, total = [], 0.0
  for i, weight in zip(order, weights, strict=True):
    if kept and top_p < 1 and total >= top_p:
      break
    if kept and np.exp(np.float32(logits[i] - logits.max())) < min_p:
      break
    kept.append(i)
    total += weight
  return sorted(kept)


def kept_by(logits_BV, top_k, top_p, min_p=0.0):
  B = len(logits_BV)
  out_BV = _jit_truncate(
    jnp.asarray(logits_BV, jnp.float32),
    jnp.broadcast_to(jnp.int32(top_k), B),
    jnp.broadcast_to(jnp.float32(top_p), B),
    jnp.broadcast_to(jnp.float32(min_p), B),
  )
  return [np.flatnonzero(np.isfinite(row)).tolist() for row in out_BV]


@pytest.mark.parametrize('top_k', [0, 1, 5, V - 1, V, V + 1, 10**9])
@pytest.mark.parametrize('top_p', [0.0, 1e-6, 0.31, 0.9, 1.0])
@pytest.mark.parametrize('min_p', [0.0, 0.07, 1.0])
def test_truncation_equals_reference(top_k, top_p, min_p):
  rng = np.random.default_rng(7)
  logits_BV = rng.normal(size=(16, V)).astype(np.float32) * 3
  expected = [reference(row, top_k, top_p, min_p) for row in logits_BV]
  assert kept_by(logits_BV, top_k, top_p, min_p) == expected


def typical_reference(logits, typical_p):
  """Kept ids, the nearest to the entropy first, equals by id."""
  finite = np.isfinite(logits)
  logits = logits.astype(np.float64)
  logs = logits - logits[finite].max()
  logs -= np.log(np.exp(logs[finite]).sum())
  entropy = -(np.exp(logs[finite]) * logs[finite]).sum()
  order = sorted(
    np.flatnonzero(finite), key=lambda i: (abs(-logs[i] - entropy), i)
  )
  kept, total = [], 0.0
  for i in order:
    if kept and typical_p < 1 and total >= typical_p:
      break
    kept.append(int(i))
    total += np.exp(logs[i])
  return sorted(kept)


@pytest.mark.parametrize('typical_p', [0.0, 0.2, 0.9, 1.0])
def test_typical_equals_reference(typical_p):
  rng = np.random.default_rng(3)
  logits_BV = rng.normal(size=(16, V)).astype(np.float32) * 2
  logits_BV[:, 3] = -np.inf
  out_BV = np.asarray(
    keep_typical(jnp.asarray(logits_BV), jnp.full(16, typical_p))
  )
  kept = [np.flatnonzero(np.isfinite(row)).tolist() for row in out_BV]
  assert kept == [typical_reference(row, typical_p) for row in logits_BV]
  # Of equals the lower ids; a single token is as typical as can be.
  even = np.asarray(keep_typical(jnp.zeros((1, 8)), jnp.array([3.5 / 8])))
  assert np.flatnonzero(np.isfinite(even[0])).tolist() == [0, 1, 2, 3]
  single = jnp.full((1, 8), -jnp.inf).at[0, 5].set(-3.0)
  alone = np.asarray(keep_typical(single, jnp.array([0.0])))
  assert np.flatnonzero(np.isfinite(alone[0])).tolist() == [5]


def test_penalties_with_windows_equal_reference():
  rng = np.random.default_rng(5)
  logits_BV = rng.normal(size=(6, V)).astype(np.float32)
  token_BS = rng.integers(0, V, size=(6, 20)).astype(np.int32)
  length_B = np.array([20, 20, 7, 1, 0, 13], np.int32)
  window_B = np.array([20, 5, 64, 3, 4, 1], np.int32)
  repetition_B = np.array([1.0, 1.5, 2.0, 0.5, 3.0, 1.1], np.float32)
  presence_B = np.array([0.5, 0.0, -1.0, 0.3, 9.0, 0.0], np.float32)
  frequency_B = np.array([0.0, 0.25, 0.1, 0.0, 9.0, -0.5], np.float32)
  settings = with_options(
    rows(6),
    repetition_penalty=jnp.asarray(repetition_B),
    presence_penalty=jnp.asarray(presence_B),
    frequency_penalty=jnp.asarray(frequency_B),
    penalty_window=jnp.asarray(window_B),
  )
  got_BV = penalize(
    jnp.asarray(logits_BV),
    settings,
    jnp.asarray(token_BS),
    jnp.asarray(length_B),
  )
  for b in range(6):
    seen = token_BS[b][: length_B[b]]
    seen = seen[max(len(seen) - window_B[b], 0) :].tolist()
    want_V = logits_BV[b].copy()
    for token in set(seen):
      logit = want_V[token]
      logit = logit / repetition_B[b] if logit > 0 else logit * repetition_B[b]
      logit -= presence_B[b] + frequency_B[b] * seen.count(token)
      want_V[token] = logit
    np.testing.assert_allclose(got_BV[b], want_V, rtol=1e-5, atol=1e-6)


def test_kept_logits_are_untouched():
  logits_BV = np.random.default_rng(1).normal(size=(16, V)).astype(np.float32)
  out_BV = np.asarray(
    _jit_truncate(
      logits_BV, jnp.full(16, 5, jnp.int32), jnp.full(16, 0.9), jnp.zeros(16)
    )
  )
  kept_BV = np.isfinite(out_BV)
  assert (out_BV[kept_BV] == logits_BV[kept_BV]).all()
  assert np.isneginf(out_BV[~kept_BV]).all()


def test_ties_keep_the_lower_ids():
  logits_BV = np.zeros((16, V), np.float32)
  assert kept_by(logits_BV, 3, 1.0)[0] == [0, 1, 2]
  # Four equals of 1/24 each reach 3.5/24; three do not.
  assert kept_by(logits_BV, 0, 3.5 / V)[0] == [0, 1, 2, 3]
  logits_BV[:, [4, 9, 20]] = 1.0
  assert kept_by(logits_BV, 2, 1.0)[0] == [4, 9]
  assert kept_by(logits_BV, 4, 1.0)[0] == [0, 4, 9, 20]


def test_forbidden_tokens_stay_out():
  logits_BV = np.full((16, V), -np.inf, np.float32)
  logits_BV[:, 5] = -3.0
  for top_k, top_p in ((0, 1.0), (V, 1.0), (0, 0.0), (1, 0.5), (3, 0.999)):
    assert kept_by(logits_BV, top_k, top_p)[0] == [5]


def rows(B, temperature=1.0, top_k=0, top_p=1.0, seed=0, min_p=0.0,
         typical_p=1.0):  # fmt: skip
  options = dataclasses.asdict(
    SampleSettings(
      temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
      typical_p=typical_p, penalty_window=1,
    )
  )  # fmt: skip
  return RowSettings(
    {n: jnp.full(B, options[n], dtype) for n, dtype in SLOTS.items()},
    jnp.zeros((B, V)),
    jnp.ones(B, bool),
    jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(seed), jnp.arange(B)
    ),
  )


def with_options(settings, **arrays):
  return settings.replace(option=settings.option | arrays)


B = 4096


def shares(logits_V, **settings):
  token_B = _jit_choose(
    jnp.broadcast_to(jnp.float32(logits_V), (B, len(logits_V))),
    rows(B, **settings),
    jnp.arange(B, dtype=jnp.int32),
  )
  return np.bincount(token_B, minlength=len(logits_V)) / B


def softmax(x):
  weights = np.exp(np.asarray(x, np.float64) - np.max(x))
  return weights / weights.sum()


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
  logits_V = np.array([1.0, -0.5, 0.3, 2.0, -3.0, -np.inf, 0.0, 1.9])
  expected = softmax(logits_V / temperature)
  # Four standard deviations of 4,096 draws.
  spread = 4 * np.sqrt(expected * (1 - expected) / B)
  assert (np.abs(shares(logits_V, temperature=temperature) - expected)
          <= spread + 1e-9).all()  # fmt: skip


def test_draws_follow_the_truncated_softmax():
  logits_V = np.array([1.0, -0.5, 0.3, 2.0, -3.0, -1.0, 0.0, 1.9])
  expected = softmax(np.where(np.isin(np.arange(8), [0, 3, 7]), logits_V, -99))
  share_V = shares(logits_V, top_k=3)
  assert np.abs(share_V - expected).max() < 0.04
  assert share_V[[1, 2, 4, 5, 6]].sum() == 0


def test_draws_follow_the_typical_softmax():
  logits_V = np.log([0.4, *[0.6 / 7] * 7])
  kept = typical_reference(np.float32(logits_V), 0.3)
  assert kept == [1, 2, 3, 4]  # the most likely one says too little
  expected = softmax(np.where(np.isin(np.arange(8), kept), logits_V, -99))
  share_V = shares(logits_V, typical_p=0.3)
  assert np.abs(share_V - expected).max() < 0.04
  assert shares(logits_V, min_p=0.3)[0] == 1


def test_cold_limits():
  logits_V = np.array([0.0, 1.0, 1.0, 0.999, -np.inf, 0.5, 0.0, 0.0])
  assert shares(logits_V, temperature=0.0)[1] == 1  # the lower of two equals
  share_V = shares(logits_V, temperature=1e-30)  # both equals, nothing else
  assert share_V[[1, 2]].sum() == 1 and 0.4 < share_V[1] < 0.6
  assert shares(logits_V * 1e30, temperature=1e-38)[[1, 2]].sum() == 1
  assert shares(logits_V, top_p=0.0)[1] == 1
  assert shares(logits_V, temperature=1e9)[4] == 0


def test_every_row_has_its_own_settings():
  logits_BV = jnp.broadcast_to(jnp.arange(8.0)[::-1] / 4, (B, 8))
  half = jnp.arange(B) % 2 == 0
  mixed = with_options(
    rows(B),
    temperature=jnp.where(half, 0.0, 1.0),
    top_k=jnp.where(half, 0, 2),
  )
  token_B = np.asarray(
    _jit_choose(logits_BV, mixed, jnp.arange(B, dtype=jnp.int32))
  )
  assert (token_B[::2] == 0).all()
  assert set(token_B[1::2].tolist()) == {0, 1}


def test_the_key_is_of_request_and_position():
  def draw(seed, offset):
    at_B = jnp.arange(B, dtype=jnp.int32) + offset
    logits_BV = jnp.broadcast_to(jnp.zeros(8), (B, 8))
    return np.asarray(_jit_choose(logits_BV, rows(B, seed=seed), at_B))

  assert (draw(0, 0) == draw(0, 0)).all()
  for other in (draw(1, 0), draw(0, 1)):
    assert 0.05 < (draw(0, 0) == other).mean() < 0.2  # 1/8 by chance


def test_what_may_follow():
  tokens_BV = jnp.ones((2, 12), bool).at[1, 3].set(False)
  out_BV = permit(
    jnp.zeros((2, 12)), tokens_BV, jnp.array([True, False]), 8, (8, 9)
  )
  assert np.flatnonzero(np.isfinite(out_BV[0])).tolist() == list(range(10))
  left = [0, 1, 2, 4, 5, 6, 7]
  assert np.flatnonzero(np.isfinite(out_BV[1])).tolist() == left


# --- an option a test: plain NumPy on random logits, and its edges ---


@pytest.fixture
def logits_BV():
  """Sixteen rows with ties, and with what is forbidden."""
  rng = np.random.default_rng(11)
  logits_BV = rng.normal(size=(16, V)).astype(np.float32) * 3
  logits_BV[:4] = np.round(logits_BV[:4])  # ties
  logits_BV[2:8][rng.random((6, V)) < 0.3] = -np.inf
  return logits_BV


def ranked(row):
  """Finite ids, most likely first, of equals the lower id."""
  order = np.lexsort((np.arange(len(row)), -row))
  return [int(i) for i in order if np.isfinite(row[i])]


def greedy(logits_BV, **more):
  settings = rows(len(logits_BV), temperature=0.0, **more)
  at_B = jnp.arange(len(logits_BV), dtype=jnp.int32)
  return _jit_choose(jnp.asarray(logits_BV), settings, at_B).tolist()


def test_greedy(logits_BV):
  want = [ranked(row)[0] for row in logits_BV]
  assert greedy(logits_BV) == want
  # What is cut off and drawn does not matter to it.
  assert greedy(logits_BV, top_k=3, top_p=0.2, typical_p=0.1, seed=5) == want


def test_temperature(logits_BV):
  row = logits_BV[3]
  for temperature in (0.3, 1.0, 4.0):
    expected = softmax(row.astype(np.float64) / temperature)
    spread = 4 * np.sqrt(expected * (1 - expected) / B)
    share_V = shares(row, temperature=temperature)
    assert (np.abs(share_V - expected) <= spread + 1e-9).all()
  # Towards 0: the most likely ones, equals as often as each other.
  tied = np.float32([0, 2, -np.inf, 2, 2, 1.99])
  share_V = shares(tied, temperature=1e-30)
  assert share_V[[1, 3, 4]].sum() == 1 and share_V[[1, 3, 4]].min() > 0.28
  for none in (0.0, 1e-38):  # the latter is 0 to a device
    assert shares(tied, temperature=none)[1] == 1


@pytest.mark.parametrize('top_k', [1, 2, 7, V - 1])
def test_top_k(logits_BV, top_k):
  want = [sorted(ranked(row)[:top_k]) for row in logits_BV]
  assert kept_by(logits_BV, top_k, 1.0) == want


@pytest.mark.parametrize('top_k', [0, V, V + 1, 2**31 - 1])
def test_top_k_of_all(logits_BV, top_k):
  want = [sorted(ranked(row)) for row in logits_BV]
  assert kept_by(logits_BV, top_k, 1.0) == want


@pytest.mark.parametrize('top_p', [0.0, 0.05, 0.5, 0.97, 1.0])
def test_top_p(logits_BV, top_p):
  for row, kept in zip(logits_BV, kept_by(logits_BV, 0, top_p), strict=True):
    order = ranked(row)
    before = np.cumsum(softmax(row)[order]) - softmax(row)[order]
    number = len(order) if top_p == 1 else max((before < top_p).sum(), 1)
    assert kept == sorted(order[:number])
    assert top_p or kept == order[:1]


@pytest.mark.parametrize('min_p', [0.0, 0.01, 0.3, 1.0])
def test_min_p(logits_BV, min_p):
  for row, kept in zip(
    logits_BV, kept_by(logits_BV, 0, 1.0, min_p), strict=True
  ):
    ratio = np.exp(row - row.max())
    assert kept == np.flatnonzero(np.isfinite(row) & (ratio >= min_p)).tolist()
    # 1 leaves the first and its equals.
    assert min_p < 1 or kept == np.flatnonzero(row == row.max()).tolist()


@pytest.mark.parametrize('typical_p', [0.0, 0.05, 0.6, 1.0])
def test_typical_p(logits_BV, typical_p):
  rows_BV = logits_BV[4:]  # without ties, which round apart
  out_BV = keep_typical(jnp.asarray(rows_BV), jnp.full(12, typical_p))
  for row, out in zip(rows_BV, np.asarray(out_BV), strict=True):
    kept = np.flatnonzero(np.isfinite(out)).tolist()
    assert kept == typical_reference(row, typical_p)
    assert (out[kept] == row[kept]).all()
    assert typical_p or len(kept) == 1
    assert typical_p < 1 or kept == sorted(ranked(row))


def penalized(logits_BV, seen, window=99, **fields):
  """Logits after the penalties; every row has read `seen`."""
  B = len(logits_BV)
  settings = with_options(
    rows(B),
    penalty_window=jnp.full(B, window),
    **{f'{name}_penalty': jnp.full(B, v) for name, v in fields.items()},
  )
  token_BS = jnp.broadcast_to(jnp.array([*seen, 0, 0]), (B, len(seen) + 2))
  return np.asarray(
    penalize(jnp.asarray(logits_BV), settings, token_BS, jnp.full(B, len(seen)))
  )


def test_repetition_penalty(logits_BV):
  seen = [3, 5, 3, 9]
  want_BV = logits_BV.copy()
  for i in set(seen):
    column = logits_BV[:, i]
    want_BV[:, i] = np.where(column > 0, column / 1.5, column * 1.5)
  got_BV = penalized(logits_BV, seen, repetition=1.5)
  np.testing.assert_allclose(got_BV, want_BV, rtol=1e-6)
  assert (penalized(logits_BV, seen, repetition=1.0) == logits_BV).all()


def test_presence_penalty(logits_BV):
  want_BV = logits_BV.copy()
  want_BV[:, [3, 5, 9]] -= 0.75  # once, however often it was seen
  got_BV = penalized(logits_BV, [3, 5, 3, 9], presence=0.75)
  np.testing.assert_allclose(got_BV, want_BV, rtol=1e-6)
  assert (penalized(logits_BV, [3], presence=0.0) == logits_BV).all()


def test_frequency_penalty(logits_BV):
  want_BV = logits_BV.copy()
  want_BV[:, [3, 5, 9]] -= np.float32([1.5, 0.75, 0.75])
  got_BV = penalized(logits_BV, [3, 5, 3, 9], frequency=0.75)
  np.testing.assert_allclose(got_BV, want_BV, rtol=1e-6)
  # Nothing seen: nothing taken, not even by what stands in the padding.
  assert (penalized(logits_BV, [], frequency=9.0) == logits_BV).all()


@pytest.mark.parametrize('window', [1, 2, 3, 4, 99])
def test_penalty_window(logits_BV, window):
  seen = [3, 5, 3, 9]
  got_BV = penalized(logits_BV, seen, window, frequency=1.0, presence=0.5)
  want_BV = penalized(logits_BV, seen[-window:], frequency=1.0, presence=0.5)
  assert (got_BV == want_BV).all()


def test_everything_masked():
  """No constraint does it; if it were done, nothing would be NaN or kept."""
  none_BV = jnp.full((16, V), -jnp.inf)
  no_B = jnp.zeros(16, bool)
  out_BV = permit(
    jnp.ones((16, V)), jnp.zeros((16, V), bool), no_B, V - 4, (V - 4,)
  )
  assert np.isneginf(out_BV).all()
  assert kept_by(none_BV, 3, 0.5, 0.1) == [[]] * 16
  assert np.isneginf(keep_typical(none_BV, jnp.full(16, 0.5))).all()
  assert np.isneginf(
    penalized(none_BV, [1, 2], repetition=2.0, presence=1.0, frequency=1.0)
  ).all()
  assert greedy(none_BV) == [0] * 16
  for more in ({}, {'top_k': 3, 'top_p': 0.5, 'min_p': 0.1, 'typical_p': 0.5}):
    at_B = jnp.arange(16, dtype=jnp.int32)
    assert _jit_choose(none_BV, rows(16, **more), at_B).tolist() == [0] * 16


def test_one_sort_serves_every_truncation():
  text = _jit_truncate.lower(
    jnp.zeros((4, V)), jnp.ones(4, jnp.int32), jnp.ones(4), jnp.ones(4)
  ).as_text()
  assert text.count('stablehlo.sort') == 1


@pytest.mark.parametrize(
  'wrong, words',
  [
    ({'temperature': -0.1}, 'temperature=-0.1 must be finite and at least 0'),
    ({'temperature': float('nan')}, 'temperature=nan'),
    ({'temperature': float('inf')}, 'temperature=inf'),
    ({'top_k': -1}, 'top_k=-1 must be from 0'),
    ({'top_k': 2**31}, 'top_k=2147483648'),
    ({'top_p': 1.01}, 'top_p=1.01 must be from 0 to 1'),
    ({'top_p': float('nan')}, 'top_p=nan'),
    ({'min_p': -0.1}, 'min_p=-0.1 must be from 0 to 1 .0 keeps all'),
    ({'typical_p': 2}, 'typical_p=2 must be from 0 to 1 .1 keeps all'),
    ({'repetition_penalty': 0}, 'repetition_penalty=0 must be finite and abo'),
    ({'presence_penalty': float('nan')}, 'presence_penalty=nan must be from'),
    ({'frequency_penalty': 1e5}, 'frequency_penalty=100000.0 must be from'),
    ({'logit_bias': {3: float('-inf')}}, 'logit_bias of token 3 is -inf'),
    ({'penalty_window': 0}, 'penalty_window=0 must be from 1'),
    ({'min_chars': -1}, 'min_chars=-1 must be from 0'),
    ({'stop': 'text'}, 'stop must be a list of texts'),
    ({'stop': ('',)}, 'none of them empty'),
  ],
)
def test_impossible_settings(wrong, words):
  with pytest.raises(UserError, match=words):
    SampleSettings(**wrong)
