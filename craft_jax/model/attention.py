"""Causal attention: over a whole window (`__call__`) or a cache (`extend`)."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from craft_jax.model import cache as cache_lib
from craft_jax.model import positions
from craft_jax.model.layers import Dense, rms_norm
from craft_jax.model.precision import einsum
from craft_jax.settings import Model as ModelConfig
from craft_jax.sharding import constrain

_MASKED = -1e30  # finite: a row with nothing allowed stays free of NaN


def allowed(
  query_BT: Int[Array, 'B T'],
  key_BS: Int[Array, '#B S'],
  window: Int[Array, ''] | int,
) -> Bool[Array, 'B T S']:
  """Where the query at a position may look: not ahead, not past the window.

  Args:
    query_BT: positions of the queries.
    key_BS: positions of the keys.
    window: symbols seen, the query's own included; 0 is all.
  """
  distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
  near = (distance_BTS < window) | (jnp.asarray(window) == 0)
  return (distance_BTS >= 0) & near


class Attention(nn.Module):
  """Multi-head, grouped-query (K < N) or multi-query (K = 1) attention."""

  cfg: ModelConfig
  precision: str
  vocabulary_size: int

  def setup(self):
    cfg = self.cfg
    self.num_kv = cfg.num_kv_heads or cfg.num_heads
    self.head_dim = cfg.width // cfg.num_heads
    kv_width = self.num_kv * self.head_dim
    dense = functools.partial(
      Dense, precision=self.precision, remat=cfg.remat != 'none'
    )
    self.query = dense(cfg.width)
    self.key = dense(kv_width)
    self.value = dense(kv_width)
    self.output = dense(cfg.width, zero_init=cfg.zero_init)
    if cfg.value_embeddings:
      self.value_embedding = nn.Embed(
        self.vocabulary_size,
        kv_width,
        embedding_init=nn.initializers.zeros_init(),
      )

  def __call__(
    self,
    x_BTD: Float[Array, 'B T D'],
    symbol_BT: Int[Array, 'B T'],
    position_BT: Int[Array, '#B T'],
    mask_BTS: Bool[Array, '#B T S'],
  ) -> Float[Array, 'B T D']:
    """Attention within a window."""
    q_BNTH, k_BKTH, v_BKTH = self._heads(x_BTD, symbol_BT, position_BT)
    return self._attend(
      q_BNTH, k_BKTH, v_BKTH, position_BT, position_BT, mask_BTS
    )

  def extend(
    self,
    x_BTD: Float[Array, 'B T D'],
    symbol_BT: Int[Array, 'B T'],
    position_BT: Int[Array, '#B T'],
    mask_BTS: Bool[Array, '#B T S'],
    k_BKSH: Float[Array, 'B K S H'],
    v_BKSH: Float[Array, 'B K S H'],
  ) -> tuple[
    Float[Array, 'B T D'], Float[Array, 'B K S H'], Float[Array, 'B K S H']
  ]:
    """Attention over the cache with the new symbols written into it."""
    q_BNTH, k_BKTH, v_BKTH = self._heads(x_BTD, symbol_BT, position_BT)
    start_B = position_BT[:, 0]
    k_BKSH = cache_lib.write(k_BKSH, k_BKTH, start_B)
    v_BKSH = cache_lib.write(v_BKSH, v_BKTH, start_B)
    key_1S = jnp.arange(k_BKSH.shape[2])[None]
    y_BTD = self._attend(q_BNTH, k_BKSH, v_BKSH, position_BT, key_1S, mask_BTS)
    return y_BTD, k_BKSH, v_BKSH

  def _heads(self, x_BTD, symbol_BT, position_BT):
    cfg = self.cfg
    q_BNTH = _split(self.query(x_BTD), cfg.num_heads)
    k_BKTH = _split(self.key(x_BTD), self.num_kv)
    v_BTF = self.value(x_BTD)
    if cfg.value_embeddings:
      v_BTF += self.value_embedding(symbol_BT)
    if cfg.qk_norm:
      q_BNTH, k_BKTH = rms_norm(q_BNTH), rms_norm(k_BKTH)
    if cfg.position == 'rope':
      turn = (position_BT, cfg.rope_fraction, cfg.rope_base)
      q_BNTH = positions.rope(q_BNTH, *turn)
      k_BKTH = positions.rope(k_BKTH, *turn)
    return (
      constrain.spread(q_BNTH, 'BNTH'),
      constrain.spread(k_BKTH, 'BKTH'),
      constrain.spread(_split(v_BTF, self.num_kv), 'BKTH'),
    )

  def _attend(self, q_BNTH, k_BKSH, v_BKSH, query_BT, key_BS, mask_BTS):
    cfg = self.cfg
    B, N, T, H = q_BNTH.shape
    K = self.num_kv
    # The query heads of one key/value head become further rows of its product.
    q_BKGH = (q_BNTH / math.sqrt(H)).reshape(B, K, N // K * T, H)
    logits_BKGS = einsum('BKGH,BKSH->BKGS', q_BKGH, k_BKSH, self.precision)
    logits_BNTS = logits_BKGS.reshape(B, N, T, -1)
    if cfg.position == 'alibi':
      distance_BTS = (query_BT[:, :, None] - key_BS[:, None, :]).astype(
        jnp.float32
      )
      slope_N = jnp.asarray(positions.alibi_slopes(N))
      logits_BNTS -= slope_N[None, :, None, None] * distance_BTS[:, None]
    logits_BNTS = jnp.where(mask_BTS[:, None], logits_BNTS, _MASKED)
    weights_BNTS = jax.nn.softmax(logits_BNTS, axis=-1)
    y_BKGH = einsum(
      'BKGS,BKSH->BKGH',
      weights_BNTS.reshape(B, K, N // K * T, -1),
      v_BKSH,
      self.precision,
    )
    y_BNTH = constrain.spread(y_BKGH.reshape(B, N, T, H), 'BNTH')
    return self.output(y_BNTH.transpose(0, 2, 1, 3).reshape(B, T, N * H))


def _split(x_BTF: Float[Array, 'B T F'], heads: int) -> Float[Array, 'B N T H']:
  B, T, F = x_BTF.shape
  return x_BTF.reshape(B, T, heads, F // heads).transpose(0, 2, 1, 3)
