"""From logits to the next symbol, every setting an array with a row each.

Nothing here is compiled into the program: one executable serves any mix of
settings.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Below this, dividing by the temperature could overflow to NaN; the
# distribution has long been that of the most likely symbol.
_COLDEST = 1e-6


@flax.struct.dataclass
class RowSettings:
  """`SampleSettings` of each row, and its key.

  Attributes:
    temperature_B: 0 is greedy.
    top_k_B: symbols kept; 0 is all.
    top_p_B: probability kept.
    end_B: whether an end may be chosen.
    key_B: of the request; a draw uses `fold_in(key, position)`.
  """

  temperature_B: Float[Array, 'B']
  top_k_B: Int[Array, 'B']
  top_p_B: Float[Array, 'B']
  end_B: Bool[Array, 'B']
  key_B: Key[Array, 'B']


def forbid_specials(
  logits_BV: Float[Array, 'B V'],
  end_B: Bool[Array, 'B'],
  num_symbols: int,
  ends: tuple[int, ...],
) -> Float[Array, 'B V']:
  """Minus infinity for every special but, where `end_B`, those that end.

  Args:
    logits_BV: of the next symbol.
    end_B: rows that may end.
    num_symbols: ids from here on are specials.
    ends: the specials that end a text.
  """
  id_V = jnp.arange(logits_BV.shape[-1])
  is_end_V = jnp.isin(id_V, jnp.asarray(ends))
  allowed_BV = (id_V < num_symbols)[None] | (is_end_V[None] & end_B[:, None])
  return jnp.where(allowed_BV, logits_BV, -jnp.inf)


def truncate(
  logits_BV: Float[Array, 'B V'],
  top_k_B: Int[Array, 'B'],
  top_p_B: Float[Array, 'B'],
) -> Float[Array, 'B V']:
  """Top-k, then top-p: minus infinity for what is cut off.

  One stable sort serves both, since each keeps a prefix of the sorted
  symbols. At least one symbol is kept. Top-p (arXiv:1904.09751) looks at the
  probabilities renormalised over what top-k left.
  """
  V = logits_BV.shape[-1]
  id_BV = jnp.broadcast_to(jnp.arange(V), logits_BV.shape)
  down_BV, order_BV = jax.lax.sort_key_val(-logits_BV, id_BV, is_stable=True)
  sorted_BV = -down_BV
  in_k_BV = (id_BV < top_k_B[:, None]) | (top_k_B[:, None] == 0)
  weight_BV = jax.nn.softmax(jnp.where(in_k_BV, sorted_BV, -jnp.inf), axis=-1)
  before_BV = jnp.cumsum(weight_BV, axis=-1) - weight_BV
  # Rounding may take the sum to 1 before the end, hence the case of its own.
  in_p_BV = (before_BV < top_p_B[:, None]) | (top_p_B[:, None] >= 1)
  last_B1 = jnp.maximum(jnp.sum(in_k_BV & in_p_BV, axis=-1, keepdims=True), 1)
  least_B1 = jnp.take_along_axis(sorted_BV, last_B1 - 1, axis=-1)
  last_id_B1 = jnp.take_along_axis(order_BV, last_B1 - 1, axis=-1)
  # Back from ranks to ids without a second sort: equals rank by id.
  kept_BV = (logits_BV > least_B1) | (
    (logits_BV == least_B1) & (id_BV <= last_id_B1)
  )
  return jnp.where(kept_BV, logits_BV, -jnp.inf)


def choose(
  logits_BV: Float[Array, 'B V'],
  settings: RowSettings,
  position_B: Int[Array, 'B'],
) -> Int[Array, 'B']:
  """One symbol per row.

  The noise belongs to ids, not to ranks, so logits that differ in the last
  bit (another batch size) choose another symbol only at a near-tie.

  Args:
    logits_BV: finite, or minus infinity for what is forbidden; at least one
      finite entry per row.
    settings: of the rows.
    position_B: index in its text of the symbol to choose.
  """
  greedy_B = jnp.argmax(logits_BV, axis=-1)
  cold_B = settings.temperature_B == 0

  def draw():
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    divisor_B = jnp.maximum(settings.temperature_B, _COLDEST)
    scaled_BV = (logits_BV - top_B1) / divisor_B[:, None]
    V = logits_BV.shape[-1]
    cuts = jnp.any(
      ~cold_B
      & (
        ((settings.top_k_B > 0) & (settings.top_k_B < V))
        | (settings.top_p_B < 1)
      )
    )
    scaled_BV = jax.lax.cond(
      cuts,
      lambda: truncate(scaled_BV, settings.top_k_B, settings.top_p_B),
      lambda: scaled_BV,
    )
    # Adding Gumbel noise and taking the maximum draws from the softmax.
    noise_BV = jax.vmap(
      lambda key, at: jax.random.gumbel(jax.random.fold_in(key, at), (V,))
    )(settings.key_B, position_B)
    return jnp.where(
      cold_B, greedy_B, jnp.argmax(scaled_BV + noise_BV, axis=-1)
    )

  token_B = jax.lax.cond(jnp.all(cold_B), lambda: greedy_B, draw)
  return token_B.astype(jnp.int32)
