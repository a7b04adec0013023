"""Positional encodings: RoPE, ALiBi and sinusoids."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rope(
  x_BTNH: Float[Array, 'B T N H'],
  position_BT: Int[Array, '#B T'],
  fraction: float,
  base: float,
) -> Float[Array, 'B T N H']:
  """Rotary position embedding (RoPE; RoFormer, arXiv:2104.09864).

  Rotates the first `fraction` of each head's entries by angles proportional to
  the position. Entry i is paired with entry i + half, as in GPT-NeoX, which
  needs no interleaving.
  """
  half = int(x_BTNH.shape[-1] * fraction) // 2
  angle = _angles(position_BT, half, base)[:, :, None]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  cos = jnp.concatenate([cos, cos], axis=-1)
  sin = jnp.concatenate([-sin, sin], axis=-1)
  turned, rest = x_BTNH[..., : 2 * half], x_BTNH[..., 2 * half :]
  # Both halves in one product: separately they take a CPU twice as long.
  turned = turned * cos + jnp.roll(turned, half, axis=-1) * sin
  return jnp.concatenate([turned, rest], axis=-1) if rest.size else turned


def alibi_slopes(num_heads: int) -> np.ndarray:
  """ALiBi slope per head, from 2^(-8/N) to 2^-8 (arXiv:2108.12409)."""
  return np.float32(2.0) ** (-8.0 * np.arange(1, num_heads + 1) / num_heads)


def sinusoids(
  position_BT: Int[Array, '#B T'], width: int
) -> Float[Array, '#B T D']:
  """Sinusoidal encoding (arXiv:1706.03762), with a root mean square of 0.7."""
  angle = _angles(position_BT, width // 2, 10000.0)
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _angles(position_BT, half: int, base: float) -> Float[Array, '#B T half']:
  """Position times frequency; frequencies fall from 1 towards 1/base."""
  frequency = jnp.asarray(base ** -(np.arange(half) / half), jnp.float32)
  return position_BT[:, :, None].astype(jnp.float32) * frequency[None, None]
