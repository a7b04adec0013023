"""Mixes the scores of a model with counts of the n-grams read so far.

A cache knows what a text repeats, which frozen weights do not (Grave et al.
2017, arXiv:1612.04426, with hidden states instead of counts). The score of a
token depends on no later token. 100,000 tokens take two seconds in NumPy.
"""

from typing import NamedTuple

import numpy as np

LONGEST = 6  # longest context that is counted, in tokens
_RATE = 0.05  # learning rate of EM; 0.02 to 0.05 differ by under 0.003 nats
_SHARE = 1e-5  # share of weights redistributed evenly, so that none becomes 0
_VARIETIES = 3  # number of classes of variety in `_situations`


class Counts(NamedTuple):
  """Counts before each token, int64 `[LONGEST + 1, N - 1]`.

  Row n is for the context of n tokens, column t for token t + 1 of the text.

  Attributes:
    seen: occurrences of the context so far.
    came: occurrences of the context followed by this token.
    kinds: number of distinct tokens that followed the context.
  """

  seen: np.ndarray
  came: np.ndarray
  kinds: np.ndarray


def count(tokens: np.ndarray, vocabulary_size: int) -> Counts:
  """Counts n-grams before each token; sorting makes this exact, not hashed."""
  tokens = np.asarray(tokens, np.int64)
  N = len(tokens)
  context_N = np.zeros(N, np.int64)
  rows = []
  for n in range(LONGEST + 1):
    # A context that would begin before the text counts as unseen.
    whole_N = np.arange(N) >= n
    code_N = np.where(whole_N, context_N * vocabulary_size + tokens, -1)
    gram_N = np.unique(code_N, return_inverse=True)[1]
    came_N, _, _ = _earlier(gram_N)
    seen_N, order_N, start_N = _earlier(np.where(whole_N, context_N, -1))
    fresh_N = (came_N == 0)[order_N].astype(np.int64)
    before_N = np.cumsum(fresh_N) - fresh_N
    kinds_N = np.empty(N, np.int64)
    kinds_N[order_N] = before_N - before_N[start_N]
    rows.append([whole_N * a for a in (seen_N, came_N, kinds_N)])
    context_N = np.append(-1, gram_N[:-1])
  return Counts(*(np.stack(a)[:, 1:] for a in zip(*rows, strict=True)))


def _earlier(a_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Counts the equal entries before each entry.

  Returns:
    The counts, the stable sorting order, and for each place in that order the
    start of its run of equal entries.
  """
  order_N = np.argsort(a_N, kind='stable')
  sorted_N = a_N[order_N]
  place_N = np.arange(len(a_N))
  fresh_N = np.append(True, sorted_N[1:] != sorted_N[:-1])
  start_N = np.maximum.accumulate(np.where(fresh_N, place_N, 0))
  earlier_N = np.empty_like(place_N)
  earlier_N[order_N] = place_N - start_N
  return earlier_N, order_N, start_N


def witten_bell(counts: Counts, vocabulary_size: int) -> np.ndarray:
  """Probability of each token by longest context, float64 `[LONGEST + 1, N]`.

  `p_n = (came + kinds * p_(n-1)) / (seen + kinds)` with the counts of n tokens
  of context; `p_(-1)` is uniform (Witten and Bell 1991, method C).
  """
  p_N = np.full(counts.seen.shape[1], 1 / vocabulary_size)
  found = []
  for seen_N, came_N, kinds_N in zip(*counts, strict=True):
    total_N = np.maximum(seen_N + kinds_N, 1)
    p_N = np.where(seen_N > 0, (came_N + kinds_N * p_N) / total_N, p_N)
    found.append(p_N)
  return np.stack(found)


def mixed_nats(
  tokens: np.ndarray, nats: np.ndarray, vocabulary_size: int
) -> np.ndarray:
  """`-ln p` of every token but the first, float64 `[N - 1]`.

  The probability is a mixture of the model's and those of `witten_bell`. Its
  weights are learned after each token by a step of online EM,
  `w_i += rate * (w_i p_i / p - w_i)`, separately for each situation, so nothing
  is tuned to a text. Weights and counts depend on earlier tokens only, so the
  probabilities of all tokens sum to one.

  Args:
    tokens: token ids, `[N]`.
    nats: nats of the model for each token but the first, `[N - 1]`.
    vocabulary_size: V.
  """
  counts = count(tokens, vocabulary_size)
  model_N = np.exp(-np.asarray(nats, np.float64))
  experts = [model_N, *witten_bell(counts, vocabulary_size)]
  situations = _situations(counts).tolist()
  even = 1 / len(experts)
  weights = [[even] * len(experts) for _ in range(max(situations) + 1)]
  keep, gain = (1 - _SHARE) * (1 - _RATE), (1 - _SHARE) * _RATE
  mixed = []
  for p_E, situation in zip(
    np.stack(experts, 1).tolist(), situations, strict=True
  ):
    joint_E = [w * p for w, p in zip(weights[situation], p_E, strict=True)]
    p = sum(joint_E)
    mixed.append(p)
    scale = gain / p
    weights[situation] = [
      keep * w + scale * joint + _SHARE * even
      for w, joint in zip(weights[situation], joint_E, strict=True)
    ]
  return -np.log(np.array(mixed))


def _situations(counts: Counts) -> np.ndarray:
  """Situation of each token: longest known context and variety, as a number.

  The variety says how many distinct tokens have followed that context: one,
  few for its count, or many.
  """
  longest_N = np.maximum((counts.seen > 0).sum(0) - 1, 0)
  seen_N, kinds_N = (
    np.take_along_axis(a, longest_N[None], 0)[0]
    for a in (counts.seen, counts.kinds)
  )
  variety_N = np.where(kinds_N <= 1, 0, np.where(4 * kinds_N <= seen_N, 1, 2))
  return longest_N * _VARIETIES + variety_N
