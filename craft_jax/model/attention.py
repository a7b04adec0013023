"""Causal attention over a full window (`__call__`) or a KV cache (`extend`)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.model import cache as cache_lib
from craft_jax.model import causal, positions
from craft_jax.model.layers import Dense, rms_norm
from craft_jax.model.precision import Policy, product, round_operand
from craft_jax.model.sharding import activations, rules

_MANY_ROWS = 16  # from here on, rounding a float32 cache to bfloat16 pays off


def allowed(
  query_BT: Int[Array, 'B T'],
  key_BS: Int[Array, '#B S'],
  window: Int[Array, ''] | int,
) -> Bool[Array, 'B T S']:
  """Causal sliding-window attention mask, True where attention is allowed.

  Args:
    query_BT: positions of the queries.
    key_BS: positions of the keys.
    window: number of latest tokens visible, the query's own included; 0 makes
      all earlier tokens visible.
  """
  distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
  near = (distance_BTS < window) | (jnp.asarray(window) == 0)
  return (distance_BTS >= 0) & near


class Attention(nn.Module):
  """Multi-head, grouped-query (K < N) or multi-query (K = 1) attention."""

  cfg: ModelConfig
  policy: Policy
  vocabulary_size: int

  def setup(self):
    cfg = self.cfg
    self.num_kv = cfg.num_kv_heads or cfg.num_heads
    self.head_dim = cfg.width // cfg.num_heads
    kv_width = self.num_kv * self.head_dim
    dense = functools.partial(
      Dense, policy=self.policy, remat=cfg.remat != 'none'
    )
    self.query = dense(cfg.width, rules.IN)
    self.key = dense(kv_width, rules.IN)
    self.value = dense(kv_width, rules.IN)
    self.output = dense(cfg.width, rules.OUT, zero_init=cfg.zero_init)
    if cfg.value_embeddings:
      self.value_embedding = nn.Embed(
        self.vocabulary_size,
        kv_width,
        embedding_init=nn.initializers.zeros_init(),
      )

  def __call__(
    self,
    x_BTD: Float[Array, 'B T D'],
    token_BT: Int[Array, 'B T'],
    position_BT: Int[Array, '#B T'],
    mask_BTS: Bool[Array, '#B T S'] | None,
  ) -> Float[Array, 'B T D']:
    """Attention within a window; fully causal if `mask_BTS` is None."""
    q_BTNH, k_BTKH, v_BTKH = self._heads(x_BTD, token_BT, position_BT)
    slopes = []
    if self.cfg.position == 'alibi':
      slopes = positions.alibi_slopes(self.cfg.num_heads).tolist()
    y_BTNH = causal.attend(
      q_BTNH, k_BTKH, v_BTKH, mask_BTS, self.policy, slopes
    )
    return self._joined(y_BTNH)

  def extend(
    self,
    x_BTD: Float[Array, 'B T D'],
    token_BT: Int[Array, 'B T'],
    position_BT: Int[Array, '#B T'],
    mask_BTS: Bool[Array, '#B T S'],
    k_BKSH: cache_lib.Stored,
    v_BKSH: cache_lib.Stored,
  ) -> tuple[Float[Array, 'B T D'], cache_lib.Stored, cache_lib.Stored]:
    """Writes new keys and values to the KV cache, then attends over it."""
    q_BTNH, k_BTKH, v_BTKH = self._heads(x_BTD, token_BT, position_BT)
    start_B = position_BT[:, 0]
    k_BKTH, v_BKTH = (
      round_operand(x_BTKH, self.policy).swapaxes(1, 2)
      for x_BTKH in (k_BTKH, v_BTKH)
    )
    k_BKSH = cache_lib.write(k_BKSH, k_BKTH, start_B)
    v_BKSH = cache_lib.write(v_BKSH, v_BKTH, start_B)
    y_BTNH = self._read(q_BTNH, k_BKSH, v_BKSH, position_BT, mask_BTS)
    return self._joined(y_BTNH), k_BKSH, v_BKSH

  def _heads(self, x_BTD, token_BT, position_BT):
    cfg = self.cfg
    q_BTNH = _split(self.query(x_BTD), cfg.num_heads)
    k_BTKH = _split(self.key(x_BTD), self.num_kv)
    v_BTF = self.value(x_BTD)
    if cfg.value_embeddings:
      v_BTF += self.value_embedding(token_BT)
    if cfg.qk_norm:
      q_BTNH, k_BTKH = rms_norm(q_BTNH), rms_norm(k_BTKH)
    if cfg.position == 'rope':
      turn = (position_BT, cfg.rope_fraction, cfg.rope_base)
      q_BTNH = positions.rope(q_BTNH, *turn)
      k_BTKH = positions.rope(k_BTKH, *turn)
    return (
      activations.spread(q_BTNH, 'BTNH'),
      activations.spread(k_BTKH, 'BTKH'),
      activations.spread(_split(v_BTF, self.num_kv), 'BTKH'),
    )

  def _read(self, q_BTNH, k_BKSH, v_BKSH, query_BT, mask_BTS):
    """Attends over a KV cache."""
    k_BKSH, k_scale_BK1S = cache_lib.parts(k_BKSH)
    v_BKSH, v_scale_BK1S = cache_lib.parts(v_BKSH)
    B, T, N, H = q_BTNH.shape
    K, S = self.num_kv, k_BKSH.shape[2]
    # Query heads that share a key/value head become rows of one product.
    q_BNTH = (q_BTNH * H**-0.5).swapaxes(1, 2)
    q_BKGH = q_BNTH.reshape(B, K, N // K * T, H)
    logits_BKGS = self._product('BKGH,BKSH->BKGS', q_BKGH, k_BKSH)
    logits_BNTS = (logits_BKGS * k_scale_BK1S).reshape(B, N, T, S)
    if self.cfg.position == 'alibi':
      distance_BTS = query_BT[:, :, None] - jnp.arange(S)[None, None]
      slope_N = jnp.asarray(positions.alibi_slopes(N))
      logits_BNTS -= (
        slope_N[None, :, None, None] * distance_BTS.astype(jnp.float32)[:, None]
      )
    logits_BNTS = jnp.where(mask_BTS[:, None], logits_BNTS, causal.MASKED)
    weights_BKGS = jax.nn.softmax(logits_BNTS, axis=-1).reshape(B, K, -1, S)
    weights_BKGS *= v_scale_BK1S
    y_BKGH = self._product('BKGS,BKSH->BKGH', weights_BKGS, v_BKSH)
    return y_BKGH.reshape(B, N, T, H).swapaxes(1, 2)

  def _product(self, spec, a_BKGX, cache_BKSH):
    """Einsum of rounded operands with keys or values of the cache.

    A float32 cache is rounded only if the product has enough rows to make up
    for converting the whole cache.
    """
    a_BKGX = round_operand(a_BKGX, self.policy)
    if cache_BKSH.dtype == jnp.float32 and a_BKGX.shape[2] < _MANY_ROWS:
      return product(
        spec,
        self.policy._replace(precision='float32'),
        a_BKGX.astype(jnp.float32),
        cache_BKSH,
      )
    cache_BKSH = round_operand(cache_BKSH, self.policy)
    return product(spec, self.policy, a_BKGX, cache_BKSH)

  def _joined(self, y_BTNH):
    """Concatenates the heads and applies the output projection."""
    y_BTNH = activations.spread(y_BTNH, 'BTNH')
    return self.output(y_BTNH.reshape(*y_BTNH.shape[:2], -1))


def _split(x_BTF: Float[Array, 'B T F'], heads: int) -> Float[Array, 'B T N H']:
  return x_BTF.reshape(*x_BTF.shape[:2], heads, -1)
