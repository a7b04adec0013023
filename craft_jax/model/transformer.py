"""Decoder-only transformer: embedding, a scan over blocks, output head.

Every parameter under `blocks` has the layer as its first dim. Training
(`apply`) scans over the layers, unrolled as configured; decoding (`extend`)
loops over them in Python, because a scan would copy the KV cache at each step.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.errors import UserError
from craft_jax.model import activation_bytes as bytes_lib
from craft_jax.model import cache as cache_lib
from craft_jax.model import ngrams, positions
from craft_jax.model.attention import Attention, allowed
from craft_jax.model.cache import Cache
from craft_jax.model.layers import Dense, Mlp, Norm, unrolled
from craft_jax.model.precision import Policy, einsum
from craft_jax.model.protocol import ActivationBytes
from craft_jax.model.quantize import Quantized, rows
from craft_jax.model.sharding import activations
from craft_jax.model.sharding.rules import IN, OUT, Rules
from craft_jax.runtime import keys
from craft_jax.types import Params

# The vocabulary is small and rarely divisible, so that dim is not sharded.
_RULES: Rules = {
  ('embed', 'embedding'): (None, 'fsdp'),
  ('positions', 'embedding'): (None, 'fsdp'),
  ('ngrams', 'embedding'): (None, None, 'fsdp'),
  ('head', 'kernel'): ('fsdp', None),
  ('final_norm', 'scale'): (None,),
  ('final_norm', 'bias'): (None,),
  ('attention_norm', 'scale'): (None, None),
  ('attention_norm', 'bias'): (None, None),
  ('mlp_norm', 'scale'): (None, None),
  ('mlp_norm', 'bias'): (None, None),
  ('query', 'kernel'): IN,
  ('key', 'kernel'): IN,
  ('value', 'kernel'): IN,
  ('output', 'kernel'): OUT,
  ('value_embedding', 'embedding'): (None, None, 'tensor'),
  ('in', 'kernel'): IN,
  ('gate', 'kernel'): IN,
  ('out', 'kernel'): OUT,
}
_REMAT_POLICY = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_saveable,
  'block': jax.checkpoint_policies.nothing_saveable,
}


def layer_windows(cfg: ModelConfig) -> list[int]:
  """Attention window of each layer in tokens; 0 is full attention.

  With `local_per_global`, each group of layers ends in a global one.
  """
  period = cfg.local_per_global + 1
  return [
    0 if cfg.local_per_global and (layer + 1) % period == 0 else cfg.window
    for layer in range(cfg.depth)
  ]


class Block(nn.Module):
  """Pre-norm transformer block: attention and MLP with residual connections."""

  cfg: ModelConfig
  policy: Policy
  vocabulary_size: int

  def setup(self):
    self.attention_norm = Norm(self.cfg.norm)
    self.attention = Attention(self.cfg, self.policy, self.vocabulary_size)
    self.mlp_norm = Norm(self.cfg.norm)
    self.mlp = Mlp(self.cfg, self.policy)

  def __call__(self, x_BTD, token_BT, position_BT, mask_BTS, key):
    y_BTD = self.attention(
      self.attention_norm(x_BTD), token_BT, position_BT, mask_BTS
    )
    x_BTD += _dropout(y_BTD, self.cfg.dropout, key, 0)
    x_BTD = activations.spread(x_BTD, 'BTD')
    y_BTD = self.mlp(self.mlp_norm(x_BTD))
    x_BTD += _dropout(y_BTD, self.cfg.dropout, key, 1)
    return activations.spread(x_BTD, 'BTD')

  def extend(self, x_BTD, token_BT, position_BT, mask_BTS, k_BKSH, v_BKSH):
    y_BTD, k_BKSH, v_BKSH = self.attention.extend(
      self.attention_norm(x_BTD),
      token_BT,
      position_BT,
      mask_BTS,
      k_BKSH,
      v_BKSH,
    )
    x_BTD += y_BTD
    return x_BTD + self.mlp(self.mlp_norm(x_BTD)), k_BKSH, v_BKSH


def _dropout(
  x_BTD: Float[Array, 'B T D'],
  rate: float,
  key: Key[Array, ''] | None,
  salt: int,
) -> Float[Array, 'B T D']:
  """Inverted dropout; returns `x_BTD` unchanged without a key."""
  if not rate or key is None:
    return x_BTD
  keep = jax.random.bernoulli(
    jax.random.fold_in(key, salt), 1 - rate, x_BTD.shape
  )
  return jnp.where(keep, x_BTD / (1 - rate), 0.0)


def _gathered(params: Params, *names: str) -> Float[Array, '...'] | Quantized:
  """A parameter outside the blocks, all-gathered for use (they are small)."""
  param = params[names[0]][names[1]]
  if isinstance(param, Quantized):
    return param  # only for inference, where parameters are not sharded
  return activations.gather(param, _RULES[names])


class Decoder:
  """Decoder-only transformer; implements `craft_jax.model.protocol.Model`.

  Holds static settings only; every method is pure. Parameters come from `init`,
  `for_decoding` or `quantize.quantize`.
  """

  sharding_rules = _RULES

  def __init__(
    self,
    cfg: ModelConfig,
    vocabulary_size: int,
    policy: Policy,
    cache: str = 'auto',
  ):
    self.cfg = cfg
    self.cache = cache
    self.context = cfg.context
    self.documents = cfg.documents
    self.vocabulary_size = vocabulary_size
    self.policy = policy
    self._block = Block(cfg, policy, vocabulary_size)
    self._norm = Norm(cfg.norm)
    self._head = Dense(
      vocabulary_size,
      _RULES['head', 'kernel'],
      policy,
      cfg.zero_init,
      name='head',
    )

  def __eq__(self, other: object) -> bool:
    if self is other:
      return True
    return type(self) is type(other) and vars(self) == vars(other)

  def __hash__(self) -> int:
    return hash((self.cfg, self.vocabulary_size, self.policy, self.cache))

  # --- parameters ---

  def init(self, key: Key[Array, '']) -> Params:
    """Initializes float32 parameters (tree in docs/architecture.md)."""
    cfg = self.cfg
    embed_key, position_key, block_key, head_key = jax.random.split(key, 4)
    x_BTD = jnp.zeros((1, 1, cfg.width))
    index_BT = jnp.zeros((1, 1), jnp.int32)
    mask_BTS = jnp.ones((1, 1, 1), bool)
    # A tied embedding is also the head, whose rows need norm 1, not sqrt(D).
    scale = cfg.width**-0.5 if cfg.tied else 1.0
    params = {
      'embed': {
        'embedding': scale
        * jax.random.normal(embed_key, (self.vocabulary_size, cfg.width))
      },
      'blocks': jax.vmap(
        lambda k: self._block.init(
          k, x_BTD, index_BT, index_BT, mask_BTS, None
        )['params']
      )(jax.random.split(block_key, cfg.depth)),
      'final_norm': self._norm.init(head_key, x_BTD)['params'],
    }
    if cfg.position == 'learned':
      params['positions'] = {
        'embedding': 0.02
        * jax.random.normal(position_key, (cfg.context, cfg.width))
      }
    if cfg.ngrams > 1:
      params['ngrams'] = {
        'embedding': jnp.zeros((cfg.ngrams - 1, cfg.ngram_rows, cfg.width))
      }
    if not cfg.tied:
      params['head'] = self._head.init(head_key, x_BTD)['params']
    return params

  # --- full windows ---

  def apply(
    self,
    params: Params,
    x_BT: Int[Array, 'B T'],
    segment_BT: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T V']:
    """Logits of the next token at every position.

    Args:
      params: from `init`.
      x_BT: tokens.
      segment_BT: document number of each token; attention stays within a
        document if `model.documents` is set.
      key: PRNG key for dropout; None disables it.
    """
    cfg = self.cfg
    position_1T = jnp.arange(x_BT.shape[1])[None]
    if segment_BT is None:
      segment_BT = jnp.zeros_like(x_BT)
    x_BTD = self._embed(params, x_BT, position_1T, x_BT, segment_BT)
    if key is not None:
      embed_key = jax.random.fold_in(key, cfg.depth)
      x_BTD = _dropout(x_BTD, cfg.dropout, embed_key, 0)
    same_BTS, windows = None, any(layer_windows(cfg))
    if cfg.documents:
      same_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]

    def block(x_BTD, layer):
      layer_params, window, index = layer
      mask_BTS = None
      if windows or cfg.documents:
        # A single mask for all rows, unless their documents differ.
        mask_BTS = allowed(position_1T, position_1T, window)
      if same_BTS is not None:
        mask_BTS &= same_BTS
      layer_key = None if key is None else jax.random.fold_in(key, index)
      x_BTD = self._block.apply(
        {'params': layer_params}, x_BTD, x_BT, position_1T, mask_BTS, layer_key
      )
      return x_BTD, None

    if cfg.remat != 'none':
      block = jax.checkpoint(
        block,
        policy=_REMAT_POLICY[cfg.remat],
        prevent_cse=unrolled(cfg) > 1,
      )
    x_BTD, _ = self._scan(block, x_BTD, params['blocks'])
    return self._logits(params, x_BTD)

  # --- with a KV cache ---

  def init_cache(self, batch: int, length: int) -> Cache:
    """An empty cache for `batch` rows of at most `length` tokens."""
    cfg, dtype = self.cfg, self.cache
    heads = cfg.num_kv_heads or cfg.num_heads
    shape = (batch, heads, length, cfg.width // cfg.num_heads)
    if dtype == 'auto':
      # Products would round to the policy's dtype anyway, so storing it changes
      # no result. But to write several rows of bfloat16, a CPU converts the
      # whole cache.
      widen = self.policy.platform.name == 'cpu' and batch > 1
      dtype = 'float32' if widen else self.policy.precision
    return Cache(
      layers=tuple(
        (cache_lib.empty(shape, dtype), cache_lib.empty(shape, dtype))
        for _ in range(cfg.depth)
      ),
      token_BS=jnp.zeros((batch, length), jnp.int32),
      segment_BS=jnp.zeros((batch, length), jnp.int32),
      length_B=jnp.zeros(batch, jnp.int32),
    )

  def extend(
    self,
    params: Params,
    cache: Cache,
    x_BT: Int[Array, 'B T'],
    length_B: Int[Array, 'B'],
    segment_BT: Int[Array, 'B T'] | None = None,
    depth: int | None = None,
  ) -> tuple[Cache, Float[Array, 'B T V']]:
    """Reads new tokens into the KV cache; returns it and their logits.

    Args:
      params: from `init`, or from `for_decoding`, which avoids slicing stacked
        layers at each call.
      cache: cache with room for the new tokens.
      x_BT: new tokens.
      length_B: number of valid tokens per row; logits past it are unspecified.
      segment_BT: document number of each token; None is a single document.
      depth: number of first layers to run before the head, for cheap drafts
        (LayerSkip, arXiv:2404.16710); all layers must read these tokens again.
    """
    T = x_BT.shape[1]
    S = cache.segment_BS.shape[1]
    position_BT = cache.length_B[:, None] + jnp.arange(T)[None]
    if segment_BT is None:
      segment_BT = jnp.zeros_like(x_BT)
    token_BS, segment_BS = (
      jax.vmap(lambda old, new, at: old.at[at].set(new, mode='drop'))(
        old_BS, new_BT, position_BT
      )
      for old_BS, new_BT in (
        (cache.token_BS, x_BT),
        (cache.segment_BS, segment_BT),
      )
    )
    key_1S = jnp.arange(S)[None]
    windows, masks = layer_windows(self.cfg), {}
    for window in set(windows):
      mask_BTS = allowed(position_BT, key_1S, window)
      if self.cfg.documents:
        mask_BTS &= segment_BT[:, :, None] == segment_BS[:, None, :]
      masks[window] = mask_BTS
    x_BTD = self._embed(params, x_BT, position_BT, token_BS, segment_BS)
    layers = list(cache.layers)
    for i, layer_params in enumerate(self._layers(params)[:depth]):
      x_BTD, *stored = self._block.apply(
        {'params': layer_params},
        x_BTD,
        x_BT,
        position_BT,
        masks[windows[i]],
        *layers[i],
        method='extend',
      )
      layers[i] = tuple(stored)
    cache = Cache(
      tuple(layers), token_BS, segment_BS, cache.length_B + length_B
    )
    return cache, self._logits(params, x_BTD)

  def for_decoding(self, params: Params) -> Params:
    """Splits stacked parameters by layer and rounds kernels for decoding.

    Decoding reads separate arrays in place. Kernels are rounded to bfloat16 if
    products would round them anyway: the same results from half the memory
    traffic.
    """

    def rounded(path, leaf):
      # The arrays of an int8 kernel have longer paths and stay as they are.
      kernel = getattr(path[-1], 'key', '') == 'kernel'
      return leaf.astype(self.policy.precision) if kernel else leaf

    params = params | {'blocks': self._layers(params)}
    return jax.tree_util.tree_map_with_path(rounded, params)

  def is_for_decoding(self, params: Params) -> bool:
    """Whether `params` were returned by `for_decoding`."""
    return isinstance(params['blocks'], tuple)

  # --- facts about the architecture ---

  def is_hidden_matrix(self, names: tuple[str, ...]) -> bool:
    """Whether the path is that of a block's kernel, shape `[L, in, out]`."""
    return names[0] == 'blocks' and names[-1] == 'kernel'

  def check_tensor(self, shards: int) -> None:
    """Checks that the heads divide over the mesh axis `tensor`.

    Raises:
      UserError: they do not; the message names the setting.
    """
    for name in ('num_heads', 'num_kv_heads'):
      heads = getattr(self.cfg, name)
      if heads % shards:
        raise UserError(
          f'model.{name}={heads} does not divide over the {shards} devices of '
          f'mesh.tensor; use a multiple of {shards}, or a mesh.tensor that '
          f'divides {heads}'
        )

  def flops_per_token(self, context: int) -> int:
    """Floating-point operations per token, forward and backward pass.

    6 per parameter of a matrix product, plus 12 x width per layer and visible
    position for attention (PaLM, arXiv:2204.02311, appendix B; without credit
    for causal masking). Embedding lookups and rematerialisation do not count.
    """
    cfg = self.cfg
    shapes = jax.eval_shape(self.init, keys.from_seed(0))
    kernels = sum(
      math.prod(leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
      if path[-1].key == 'kernel'
    )
    head = cfg.width * self.vocabulary_size if cfg.tied else 0
    seen = sum(min(w or context, context) for w in layer_windows(cfg))
    return 6 * (kernels + head) + 12 * cfg.width * seen

  def activation_bytes(
    self, batch: int, context: int, tensor: int = 1
  ) -> ActivationBytes:
    """Estimates activation memory; see `craft_jax.model.activation_bytes`."""
    per_token = bytes_lib.per_token(
      self.cfg, self.policy, self.vocabulary_size, context, tensor
    )
    return ActivationBytes(*(batch * context * each for each in per_token))

  def tensor_bytes(self, batch: int, context: int) -> float:
    """Bytes that a training step all-reduces over the mesh axis `tensor`.

    Counts float32 `[B, T, D]` arrays per layer. Forward: outputs of attention
    and MLP. Backward: gradients of the inputs of query, key, value and in (and
    gate). With remat=block, the output of attention once more.
    """
    cfg = self.cfg
    products = 2 + 3 + (2 if cfg.mlp == 'swiglu' else 1)
    products += cfg.remat == 'block'
    return cfg.depth * products * 4 * batch * context * cfg.width

  # --- shared parts ---

  def _layers(self, params: Params) -> tuple[Params, ...]:
    """Parameters per block, sliced from the stack if they are stacked."""
    blocks = params['blocks']
    if isinstance(blocks, tuple):
      return blocks
    return tuple(
      jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
      for i in range(self.cfg.depth)
    )

  def _scan(self, block, x_BTD, blocks: Params):
    layers = (
      blocks,
      jnp.asarray(layer_windows(self.cfg), jnp.int32),
      jnp.arange(self.cfg.depth),
    )
    return jax.lax.scan(block, x_BTD, layers, unroll=unrolled(self.cfg))

  def _embed(self, params, x_BT, position_BT, token_BS, segment_BS):
    cfg = self.cfg
    x_BTD = _gathered(params, 'embed', 'embedding')[x_BT]
    if cfg.tied:
      x_BTD *= cfg.width**0.5
    if cfg.ngrams > 1:
      if not cfg.documents:
        segment_BS = jnp.zeros_like(segment_BS)
      row_nBT = ngrams.rows(
        token_BS,
        segment_BS,
        position_BT,
        cfg.ngrams,
        cfg.ngram_rows,
        self.vocabulary_size,
      )
      table_nRD = _gathered(params, 'ngrams', 'embedding')
      for i, row_BT in enumerate(row_nBT):
        x_BTD += rows(table_nRD, i, row_BT)
    if cfg.position == 'learned':
      x_BTD += _gathered(params, 'positions', 'embedding')[position_BT]
    if cfg.position == 'sinusoidal':
      x_BTD += positions.sinusoids(position_BT, cfg.width)
    return activations.spread(x_BTD, 'BTD')

  def _logits(self, params, x_BTD):
    cap = self.cfg.logit_cap
    x_BTD = self._norm.apply({'params': params['final_norm']}, x_BTD)
    if self.cfg.tied:
      spec, kernel = 'BTD,VD->BTV', _gathered(params, 'embed', 'embedding')
    else:
      spec, kernel = 'BTD,DV->BTV', _gathered(params, 'head', 'kernel')
    logits_BTV = einsum(spec, x_BTD, kernel, self.policy)
    logits_BTV = activations.spread(logits_BTV, 'BTV')
    return cap * jnp.tanh(logits_BTV / cap) if cap else logits_BTV
