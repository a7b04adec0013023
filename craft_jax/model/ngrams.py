"""Which rows of the n-gram tables the tokens of a text read."""

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
  """Row of the n-gram that ends at each position, for n from 2 to `longest`.

  An n-gram stops at the start of the text and of its document: what would lie
  before counts as one more token. Where a table has a row for each n-gram
  there are no collisions, else rows are shared by a hash.

  Args:
    token_BS: the text.
    segment_BS: its documents.
    position_BT: in it.
    longest: n-grams.
    num_rows: of each table.
    vocabulary_size: tokens.
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
