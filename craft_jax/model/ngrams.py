"""Indices of n-gram embeddings for each position of a text."""

import jax.numpy as jnp
from jaxtyping import Array, Int

_MIX = 0x9E3779B1  # odd: a bijection of 32 bits (Knuth, TAOCP 6.4)


def rows(
  token_BS: Int[Array, 'B S'],
  segment_BS: Int[Array, 'B S'],
  position_BT: Int[Array, '#B T'],
  longest: int,
  num_rows: int,
  vocabulary_size: int,
) -> Int[Array, 'n B T']:
  """Row of the n-gram ending at each position, for n from 2 to `longest`.

  Positions before the start of the document count as an additional token. A
  table with at least as many rows as there are n-grams has no collisions;
  otherwise rows are chosen by a hash.

  Args:
    token_BS: tokens of the text.
    segment_BS: document number of each token.
    position_BT: positions in the text to look up.
    longest: the largest n.
    num_rows: rows per table.
    vocabulary_size: number of tokens in the vocabulary.

  Returns:
    Row numbers, int32; the first dim runs over n.
  """
  radix = vocabulary_size + 1
  B = token_BS.shape[0]
  position_BT = jnp.broadcast_to(position_BT, (B, position_BT.shape[1]))
  here_BT = jnp.take_along_axis(segment_BS, position_BT, 1)
  code_BT = jnp.take_along_axis(token_BS, position_BT, 1).astype(jnp.uint32)
  found = []
  for back in range(1, longest):
    at_BT = jnp.maximum(position_BT - back, 0)
    token_BT = jnp.take_along_axis(token_BS, at_BT, 1) + 1
    same_BT = jnp.take_along_axis(segment_BS, at_BT, 1) == here_BT
    token_BT = jnp.where(same_BT & (position_BT >= back), token_BT, 0)
    code_BT += token_BT.astype(jnp.uint32) * jnp.uint32(
      vocabulary_size * radix ** (back - 1) % 2**32
    )
    hashed_BT = code_BT
    if vocabulary_size * radix**back > num_rows:
      hashed_BT = code_BT * jnp.uint32(_MIX)
      hashed_BT ^= hashed_BT >> 15
    found.append(hashed_BT % jnp.uint32(num_rows))
  return jnp.stack(found).astype(jnp.int32)
