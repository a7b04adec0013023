"""PRNG keys from seeds."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt


def from_seed(seed: int | UInt[Array, '']) -> Key[Array, '']:
  """Threefry key of a seed below 2^32, independent of JAX's settings.

  `jax.random.key` depends on `jax_default_prng_impl` and
  `jax_random_seed_offset`.
  """
  word = jnp.asarray(seed, jnp.uint32)
  return jax.random.wrap_key_data(
    jnp.stack([jnp.zeros_like(word), word]), impl='threefry2x32'
  )
