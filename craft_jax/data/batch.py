"""Pure, jittable functions from token arrays to batches.

A batch is a function of the seed, the data index and the global batch size.
`windows_at` cuts windows from a corpus on the device and `numpy_windows_at`
from one on the host; both give identical numbers. `to_batch` makes batches of
them.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from craft_jax.config.settings import Config
from craft_jax.data import index, pairs
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.types import Batch

ALL = slice(None)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Settings of `to_batch`; hashable, to be a static argument of `jax.jit`.

  Attributes:
    num_text_tokens: ids below this are text, others are special tokens.
    bos: id of the token between documents.
    unk: id that replaces masked inputs.
    documents: whether `segment_BT` numbers the documents of a window.
    case_rate: fraction of input letters given a random case.
    noise_rate: fraction of input tokens replaced by a random token.
    span_rate: fraction of input tokens masked in spans.
    span_length: tokens per span.
    swapped: id of the other case of each id; empty if case_rate is 0.
    completions: id of EOS if only the completions of packed pairs are learnt;
      None if every target is.
  """

  num_text_tokens: int
  bos: int
  unk: int
  documents: bool = False
  case_rate: float = 0.0
  noise_rate: float = 0.0
  span_rate: float = 0.0
  span_length: int = 8
  swapped: tuple[int, ...] = ()
  completions: int | None = None

  @property
  def augments(self) -> bool:
    """Whether inputs are augmented at all."""
    return bool(self.case_rate or self.noise_rate or self.span_rate)


def recipe_of(cfg: Config, vocabulary: Vocabulary) -> Recipe:
  """Collects the `Recipe` of a run from its settings and vocabulary."""
  d = cfg.data
  return Recipe(
    num_text_tokens=vocabulary.num_text_tokens,
    bos=vocabulary.bos,
    unk=vocabulary.unk,
    documents=cfg.model.documents,
    case_rate=d.case_rate,
    noise_rate=d.noise_rate,
    span_rate=d.span_rate,
    span_length=d.span_length,
    swapped=swapped_case(vocabulary) if d.case_rate else (),
    completions=vocabulary.eos if d.format == 'pairs' else None,
  )


def swapped_case(vocabulary: Vocabulary) -> tuple[int, ...]:
  """The id of the other case of each id, or the id itself.

  Letters are swapped if both are in the vocabulary and each is the other's only
  other case, unlike 'ß' and 'ŉ'. Of bytes, only ASCII letters are swapped.
  """
  if vocabulary.kind == 'byte':
    tokens = [chr(i) if i < 128 else '' for i in range(256)]
  else:
    tokens = list(vocabulary.chars)
  ids = {token: i for i, token in enumerate(tokens) if token}
  table = list(range(vocabulary.size))
  for token, i in ids.items():
    other = token.swapcase()
    if other in ids and other.swapcase() == token:
      table[i] = ids[other]
  return tuple(table)


@jax.named_scope('windows')
def windows_at(
  tokens: Array,
  data_index: Any,
  *,
  batch_size: int,
  context: int,
  order: str,
  seed: int,
) -> Int[Array, 'B S']:
  """Cuts the windows of batch `data_index` from a corpus on the device.

  Args:
    tokens: the training split, uint8 or uint16 `[N]`, N below 2**31.
    data_index: number of the batch, an integer scalar that may be traced.
    batch_size: global batch size B.
    context: T; a window holds S = T + 1 tokens.
    order: 'crops' (any offset) or 'windows' (multiples of `context`).
    seed: seed of the run.

  Returns:
    int32 `[B, T + 1]`.
  """
  sample = index.samples_of(data_index, batch_size, ALL, jnp)
  start = index.start_of(sample, tokens.shape[0], context, order, seed, jnp)
  position = index.window_index(start, context, jnp)
  # Positions are in bounds by construction.
  return tokens.at[position].get(mode='promise_in_bounds').astype(jnp.int32)


def numpy_windows_at(
  tokens: np.ndarray,
  data_index: int,
  *,
  batch_size: int,
  context: int,
  order: str,
  seed: int,
  rows: slice = ALL,
) -> np.ndarray:
  """`windows_at` on the host, for some `rows` of the batch.

  Returns:
    int32 `[rows, T + 1]`.
  """
  sample = index.samples_of(data_index, batch_size, rows, np)
  start = index.start_of(sample, len(tokens), context, order, seed, np)
  return tokens[index.window_index(start, context, np)].astype(np.int32)


def to_batch(
  window_BS: Int[Array, 'B S'], key: PRNGKeyArray, recipe: Recipe
) -> Batch:
  """Makes inputs, targets, weights and segments of windows of T + 1 tokens.

  Every target has weight 1, BOS included, since a model must learn where a
  document ends; of pairs, those of completions alone (see `pairs.learnt`).
  Augmentation changes neither targets nor special tokens.

  Args:
    window_BS: windows of T + 1 tokens, int32.
    key: PRNG key of this batch, already folded with the data index.
    recipe: documents and augmentation.
  """
  x_BT, y_BT = window_BS[:, :-1], window_BS[:, 1:]
  if recipe.documents:
    segment_BT = pairs.segments(x_BT, recipe.bos, jnp)
  else:
    segment_BT = jnp.zeros_like(x_BT)
  if recipe.augments:
    changed_BT = augment(x_BT, key, recipe)
    x_BT = jnp.where(x_BT < recipe.num_text_tokens, changed_BT, x_BT)
  if recipe.completions is None:
    weight_BT = jnp.ones(x_BT.shape, jnp.float32)
  else:
    learnt_BT = pairs.learnt(window_BS[:, :-1], recipe.completions, jnp)
    weight_BT = learnt_BT.astype(jnp.float32)
  return Batch(x_BT, y_BT, weight_BT, segment_BT)


@jax.named_scope('augment')
def augment(
  x_BT: Int[Array, 'B T'], key: PRNGKeyArray, recipe: Recipe
) -> Int[Array, 'B T']:
  """Applies random case, then noise, then span masking to input tokens."""
  case_key, noise_key, token_key, span_key = jax.random.split(key, 4)
  shape = x_BT.shape
  if recipe.case_rate:
    # A random case differs from the given one half of the time.
    swap_BT = jax.random.bernoulli(case_key, recipe.case_rate / 2, shape)
    table_V = jnp.asarray(recipe.swapped, jnp.int32)
    x_BT = jnp.where(swap_BT, table_V[x_BT], x_BT)
  if recipe.noise_rate:
    noisy_BT = jax.random.bernoulli(noise_key, recipe.noise_rate, shape)
    random_BT = jax.random.randint(token_key, shape, 0, recipe.num_text_tokens)
    x_BT = jnp.where(noisy_BT, random_BT, x_BT)
  if recipe.span_rate:
    hidden_BT = _spans(span_key, shape, recipe.span_rate, recipe.span_length)
    x_BT = jnp.where(hidden_BT, recipe.unk, x_BT)
  return x_BT


def _spans(
  key: PRNGKeyArray, shape: tuple[int, ...], rate: float, length: int
) -> Array:
  """Random span mask, bool `[B, T]`; each position is True at `rate`.

  A span starts at each position with probability p, where
  (1 - p)^length = 1 - rate: a position is unmasked if no span starts at it or
  at one of the `length - 1` positions before it. Spans may overlap and may
  begin before the window.
  """
  batch, context = shape
  p = -math.expm1(math.log1p(-rate) / length)
  starts = jax.random.bernoulli(key, p, (batch, context + length - 1))
  count = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
  count = jnp.pad(count, ((0, 0), (1, 0)))
  return count[:, length:] > count[:, :-length]


def batch_at(
  tokens: Array,
  key: PRNGKeyArray,
  data_index: Any,
  *,
  batch_size: int,
  context: int,
  order: str,
  seed: int,
  recipe: Recipe,
) -> Batch:
  """The batch with number `data_index`, from a corpus on the device.

  Args:
    tokens: the training split, uint8 or uint16 `[N]`, N below 2**31.
    key: PRNG key of the run, folded with the data index here.
    data_index: number of the batch, an integer scalar that may be traced.
    batch_size: global batch size B.
    context: T, targets per row.
    order: 'crops' (any offset) or 'windows' (multiples of `context`).
    seed: seed of the run.
    recipe: documents and augmentation.
  """
  window_BS = windows_at(
    tokens,
    data_index,
    batch_size=batch_size,
    context=context,
    order=order,
    seed=seed,
  )
  return to_batch(window_BS, jax.random.fold_in(key, data_index), recipe)
