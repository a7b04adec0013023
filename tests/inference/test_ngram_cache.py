"""Counts are those of a plain loop; mixtures are distributions, and causal."""

import collections

import numpy as np
import pytest

from craft_jax.inference import ngram_cache

V = 5


def text(length=400, seed=0):
  """Tokens with something to learn: each often follows the one before."""
  random = np.random.default_rng(seed)
  steps = random.choice(V, length, p=[0.05, 0.7, 0.15, 0.05, 0.05])
  return np.cumsum(steps).astype(np.uint8) % V


def log_probs(tokens, seed=1):
  """The nats of every token at every place under a model, `[N - 1, V]`."""
  logits = np.random.default_rng(seed).normal(size=(len(tokens) - 1, V))
  return np.log(np.exp(logits).sum(1, keepdims=True)) - logits


def nats_of(tokens):
  table = log_probs(tokens)
  return table[np.arange(len(table)), tokens[1:]]


def test_counts():
  tokens = text()
  counts = ngram_cache.count(tokens, V)
  seen, followers = collections.Counter(), collections.defaultdict(list)
  for t, token in enumerate(tokens.tolist()):
    for n in range(min(t, ngram_cache.LONGEST) + 1):
      context = (n, *tokens[t - n : t].tolist())
      if t:
        assert counts.seen[n, t - 1] == seen[context]
        assert counts.came[n, t - 1] == followers[context].count(token)
        assert counts.kinds[n, t - 1] == len(set(followers[context]))
      seen[context] += 1
      followers[context].append(token)
  assert not counts.seen[3:, 0].any()  # would begin before the text


@pytest.mark.parametrize('length', [2, 3, 40, 300])
def test_probabilities_sum_to_one(length):
  tokens = text(length)
  table = log_probs(tokens)
  nats, shares = nats_of(tokens), []
  for token in range(V):
    other, nats_other = tokens.copy(), nats.copy()
    other[-1], nats_other[-1] = token, table[-1, token]
    mixed = ngram_cache.mixed_nats(other, nats_other, V)
    counted = ngram_cache.witten_bell(ngram_cache.count(other, V), V)
    shares.append([np.exp(-mixed[-1]), *counted[:, -1]])
  np.testing.assert_allclose(np.sum(shares, 0), 1, rtol=1e-9)


@pytest.mark.parametrize('at', [1, 50, 399])
def test_no_later_token_matters(at):
  tokens = text()
  nats = nats_of(tokens)
  other, nats_other = tokens.copy(), nats.copy()
  other[at:] = (other[at:] + 1) % V
  nats_other[at - 1 :] += 0.5
  a = ngram_cache.mixed_nats(tokens, nats, V)
  b = ngram_cache.mixed_nats(other, nats_other, V)
  assert np.array_equal(a[: at - 1], b[: at - 1]) and a[at - 1] != b[at - 1]


def test_the_better_one_wins():
  tokens = text(4000)
  poor = np.full(len(tokens) - 1, np.log(V))
  good = np.full(len(tokens) - 1, 0.01)
  mixed = ngram_cache.mixed_nats(tokens, poor, V)
  assert mixed.mean() < 0.75 * np.log(V)
  assert ngram_cache.mixed_nats(tokens, good, V)[2000:].mean() < 0.1


def test_impossible_and_certain_tokens():
  tokens = text(3000)
  nats = np.where(np.arange(2999) % 3 == 0, 0.0, np.inf)
  assert np.isfinite(ngram_cache.mixed_nats(tokens, nats, V)).all()


def test_large_vocabularies():
  tokens = np.array([65535, 0, 65535, 0, 65535, 0, 1], np.uint16)
  counts = ngram_cache.count(tokens, 65536)
  assert counts.came[:4, 4].tolist() == [2, 2, 1, 1]
