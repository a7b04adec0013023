"""The one place where a seed becomes a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt


def from_seed(seed: int | UInt[Array, '']) -> Key[Array, '']:
  """The Threefry key of a seed below 2^32, whatever JAX is set to.

  `jax.random.key` would take the generator, and an offset of the seed, from
  the settings of JAX.
  """
  word = jnp.asarray(seed, jnp.uint32)
  return jax.random.wrap_key_data(
    jnp.stack([jnp.zeros_like(word), word]), impl='threefry2x32'
  )
