"""From logits to the next token, every setting an array with a row each.

Nothing here is compiled into the program: one executable serves any mix of
settings.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Below this, dividing by the temperature could overflow to NaN; the
# distribution has long been that of the most likely token.
_COLDEST = 1e-6


@flax.struct.dataclass
class RowSettings:
  """`SampleSettings` of each row, and its key.

  Attributes:
    option: `[B]` of each option, by the name that `options.Sampling` has.
    bias_BV: added to the logits, finite.
    end_B: whether an end may be chosen.
    key_B: of the request; a draw uses `fold_in(key, position)`.
  """

  option: dict[str, Array]
  bias_BV: Float[Array, 'B V']
  end_B: Bool[Array, 'B']
  key_B: Key[Array, 'B']


def penalize(
  logits_BV: Float[Array, 'B V'],
  settings: RowSettings,
  token_BS: Int[Array, 'B S'],
  length_B: Int[Array, 'B'],
) -> Float[Array, 'B V']:
  """Takes the penalties from the logits of tokens seen lately.

  Repetition (arXiv:1909.05858) goes first: a logit above 0 is divided by it and
  one below multiplied, so that above 1 it always lowers. Then presence once,
  and frequency for each time. Repetition 1 and penalties of 0 change nothing,
  nor does a row that has read nothing; minus infinity stays.

  Args:
    logits_BV: of the next token.
    settings: of the rows.
    token_BS: what was read.
    length_B: tokens of `token_BS` that were; the last `penalty_window` of
      them count, or all if there are fewer.
  """
  option = settings.option
  index_1S = jnp.arange(token_BS.shape[1])[None]
  lately_BS = (index_1S < length_B[:, None]) & (
    index_1S >= (length_B - option['penalty_window'])[:, None]
  )
  count_BV = jax.vmap(
    lambda token_S, lately_S: (
      jnp.zeros(logits_BV.shape[1]).at[token_S].add(lately_S)
    )
  )(token_BS, lately_BS.astype(jnp.float32))
  factor_B1 = option['repetition_penalty'][:, None]
  lowered_BV = jnp.where(
    logits_BV > 0, logits_BV / factor_B1, logits_BV * factor_B1
  )
  logits_BV = jnp.where(count_BV > 0, lowered_BV, logits_BV)
  logits_BV -= option['presence_penalty'][:, None] * (count_BV > 0)
  return logits_BV - option['frequency_penalty'][:, None] * count_BV


def permit(
  logits_BV: Float[Array, 'B V'],
  tokens_BV: Bool[Array, 'B V'],
  end_B: Bool[Array, 'B'],
  num_text_tokens: int,
  ends: tuple[int, ...],
) -> Float[Array, 'B V']:
  """Minus infinity for every token, and every special, that may not follow.

  The other logits stay as they are. Where nothing may follow all of a row is
  minus infinity, which no constraint asks for: none has a dead end.

  Args:
    logits_BV: of the next token.
    tokens_BV: what may follow; of the specials it says nothing.
    end_B: rows that may end.
    num_text_tokens: ids from here on are specials.
    ends: the specials that end a text; the others never follow.
  """
  id_V = jnp.arange(logits_BV.shape[-1])
  is_end_V = jnp.isin(id_V, jnp.asarray(ends))
  allowed_BV = jnp.where(
    (id_V < num_text_tokens)[None], tokens_BV, is_end_V[None] & end_B[:, None]
  )
  return jnp.where(allowed_BV, logits_BV, -jnp.inf)


def truncate(
  logits_BV: Float[Array, 'B V'],
  top_k_B: Int[Array, 'B'],
  top_p_B: Float[Array, 'B'],
  min_p_B: Float[Array, 'B'],
) -> Float[Array, 'B V']:
  """Top-k, top-p and min-p: minus infinity for what is cut off.

  One stable sort serves all, since each keeps a prefix of the sorted tokens,
  of equals the lower ids first. At least one token is kept.

  - Top-k: 0, V or more keep all.
  - Top-p (arXiv:1904.09751): of the probabilities renormalised over what top-k
    left, the fewest that reach the sum. 1 keeps all, 0 the first.
  - Min-p (arXiv:2407.01082): compares with the most likely token, which needs
    no normalisation. 0 keeps all, 1 the first and its equals.

  Minus infinity is never kept beside something finite, whatever k is; a row of
  nothing else stays as it is.
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
  likely_BV = jnp.exp(sorted_BV - sorted_BV[:, :1]) >= min_p_B[:, None]
  kept_BV = in_k_BV & in_p_BV & likely_BV
  last_B1 = jnp.maximum(jnp.sum(kept_BV, axis=-1, keepdims=True), 1)
  least_B1 = jnp.take_along_axis(sorted_BV, last_B1 - 1, axis=-1)
  last_id_B1 = jnp.take_along_axis(order_BV, last_B1 - 1, axis=-1)
  # Back from ranks to ids without a second sort: equals rank by id.
  kept_BV = (logits_BV > least_B1) | (
    (logits_BV == least_B1) & (id_BV <= last_id_B1)
  )
  return jnp.where(kept_BV, logits_BV, -jnp.inf)


def keep_typical(
  logits_BV: Float[Array, 'B V'], typical_p_B: Float[Array, 'B']
) -> Float[Array, 'B V']:
  """Locally typical tokens (arXiv:2202.00666); the others get -inf.

  Those whose information is nearest to the entropy, as few as reach the sum,
  at least one; among equals the lower ids. 1 keeps all, 0 the most typical one.
  Minus infinity has no probability and stays; so does a row of nothing else.
  Their order is another than that of `truncate`, but of a small vocabulary each
  token can be compared with every other: no second sort.
  """
  log_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  weight_BV = jnp.exp(log_BV)
  entropy_B1 = -jnp.sum(
    jnp.where(weight_BV > 0, weight_BV * log_BV, 0.0), axis=-1, keepdims=True
  )
  distance_BV = jnp.abs(-log_BV - entropy_B1)  # infinite for what is cut off
  ours_BV1, theirs_B1V = distance_BV[:, :, None], distance_BV[:, None, :]
  id_V = jnp.arange(logits_BV.shape[-1])
  lower_1VV = (id_V[None, :] < id_V[:, None])[None]
  nearer_BVV = (theirs_B1V < ours_BV1) | ((theirs_B1V == ours_BV1) & lower_1VV)
  before_BV = jnp.sum(
    jnp.where(nearer_BVV, weight_BV[:, None, :], 0.0), axis=-1
  )
  typical_p_B1 = typical_p_B[:, None]
  first_BV = ~jnp.any(nearer_BVV, axis=-1)
  kept_BV = (before_BV < typical_p_B1) | (typical_p_B1 >= 1) | first_BV
  return jnp.where(kept_BV, logits_BV, -jnp.inf)


def choose(
  logits_BV: Float[Array, 'B V'],
  settings: RowSettings,
  position_B: Int[Array, 'B'],
) -> Int[Array, 'B']:
  """One token per row.

  The noise belongs to ids, not to ranks, so logits that differ in the last
  bit (another batch size) choose another token only at a near-tie.

  Temperature 0, which is also what rounds to it in float32, is greedy, of
  equals the lower id. Towards 0 a draw is of the most likely tokens, each as
  often as its equals; below 1e-6 it stays so. What is minus infinity is never
  chosen beside something finite; in a row of nothing else id 0 is.

  Args:
    logits_BV: finite, or minus infinity for what is forbidden.
    settings: of the rows.
    position_B: index in its text of the token to choose.
  """
  greedy_B = jnp.argmax(logits_BV, axis=-1)
  option = settings.option
  cold_B = option['temperature'] == 0

  def draw():
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    divisor_B = jnp.maximum(option['temperature'], _COLDEST)
    scaled_BV = (logits_BV - top_B1) / divisor_B[:, None]
    V = logits_BV.shape[-1]
    top_k_B, top_p_B = option['top_k'], option['top_p']
    min_p_B, typical_p_B = option['min_p'], option['typical_p']
    cuts_B = (top_k_B > 0) & (top_k_B < V)
    cuts_B |= (top_p_B < 1) | (min_p_B > 0)
    scaled_BV = jax.lax.cond(
      jnp.any(~cold_B & cuts_B),
      lambda: truncate(scaled_BV, top_k_B, top_p_B, min_p_B),
      lambda: scaled_BV,
    )
    scaled_BV = jax.lax.cond(
      jnp.any(~cold_B & (typical_p_B < 1)),
      lambda: keep_typical(scaled_BV, typical_p_B),
      lambda: scaled_BV,
    )
    # Adding Gumbel noise and taking the maximum draws from the softmax.
    noise_BV = jax.vmap(
      lambda key, at: jax.random.gumbel(
        jax.random.fold_in(key, at), (V,), mode='low'
      )
    )(settings.key_B, position_B)
    return jnp.where(
      cold_B, greedy_B, jnp.argmax(scaled_BV + noise_BV, axis=-1)
    )

  token_B = jax.lax.cond(jnp.all(cold_B), lambda: greedy_B, draw)
  return token_B.astype(jnp.int32)
