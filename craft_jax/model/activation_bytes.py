"""Bytes of a transformer's activations, per token of a micro-batch.

Of scanned layers the kept activations are what JAX's own differentiation asks
to keep (a test compares them), of unrolled ones what XLA then keeps of it. The
working set is an estimate: a compiler merges, fuses and reorders.
docs/memory.md says how far the sum is from what was measured.
"""

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.model.causal import blocks, fuses
from craft_jax.model.layers import mlp_width, unrolled
from craft_jax.model.precision import Policy


def per_token(
  cfg: ModelConfig,
  policy: Policy,
  vocabulary_size: int,
  context: int,
  tensor: int,
) -> tuple[float, float, float]:
  """Bytes kept for the backward pass, of the layer in it, and of the logits.

  Outside the layers, the input of the last norm and its normalized self
  (float32) and the input of the head are kept. The logits are all float32:
  themselves, exponentials, gradient (and cap).

  Args:
    cfg: of the model.
    policy: of its products.
    vocabulary_size: V.
    context: tokens of a row.
    tensor: devices that share the layers.
  """
  scanned = unrolled(cfg) < cfg.depth
  layer = _KEPT[cfg.remat](cfg, policy, context, tensor, scanned)
  ends = (8 + _item(policy)) * cfg.width
  logits = 4 * vocabulary_size * (4 if cfg.logit_cap else 3)
  working = _working(cfg, policy, context, tensor)
  return cfg.depth * layer + ends, working, logits


def _working(cfg, policy, context, tensor) -> float:
  """Of the layer that the backward pass is in.

  Gradients of the attention weights, which become those of the logits in
  place and are rounded, of the hidden layer and of the stream; under remat also
  what the layer would have kept without.
  """
  rounded = 0 if _item(policy) == 4 else _item(policy)
  square = _weights(cfg, policy, context, at_once=True)
  split = (4 + rounded) * square + 8 * mlp_width(cfg)
  grads = split / tensor + 12 * cfg.width
  if cfg.remat == 'none':
    return grads
  return grads + _everything(cfg, policy, context, tensor, True)


def _item(policy: Policy) -> int:
  """Bytes of an operand of a product."""
  return 4 if policy.precision == 'float32' else 2


def _weights(cfg, policy, context, at_once: bool = False) -> float:
  """Attention weights per token and layer, in numbers.

  What `causal` computes of the square, or of one block of it at a time; none
  where cuDNN has a kernel, but for the normalizers.
  """
  if fuses(policy, context, cfg.width // cfg.num_heads):
    return 2 * cfg.num_heads
  sizes = [
    (end - start) * end for start, end in blocks(context, policy.platform.name)
  ]
  return cfg.num_heads * (max(sizes) if at_once else sum(sizes)) / context


def _everything(cfg, policy, context, tensor, scanned: bool) -> float:
  """Bytes per token and layer without rematerialisation.

  With c bytes per operand (2 in bfloat16), D width, K H the keys' width, F
  hidden width, N heads, S context, K key/value heads:

    whole on every device of `tensor`
      input and normalized input of both norms     4 x 4 D, and 4 scalars
      rounded inputs of query, key, value, in      c x 4 D (5 D with a gate)
        in float32 they are one array per norm     4 x 2 D
      dropped entries (dropout)                    2 D
    split over `tensor`
      rounded queries, keys, values                c x (D + 2 K H)
      queries and keys before qk_norm, 2 scalars   4 x (D + K H + 2 N + 2 K)
      rounded attention weights                    c x N S, see `_weights`
      rounded output of the heads                  c x D
      hidden layer, of scanned layers: the rounded activation c x F, and of
        its derivatives relu2 one and a mask       5 x F
        gelu and swiglu                            20 x F
      of unrolled layers, where XLA computes derivatives again from inputs:
        relu2 the input; gelu the rounded activation too; swiglu both inputs
        and the gate                               4, c + 4, c + 12 x F
      any other activation counts as gelu
  """
  c = _item(policy)
  D, N, F = cfg.width, cfg.num_heads, mlp_width(cfg)
  K = cfg.num_kv_heads or N
  KH = K * D // N
  inputs = 2 if c == 4 else 4 + (cfg.mlp == 'swiglu')
  whole = 16 * D + 16 + c * inputs * D + (2 * D if cfg.dropout else 0)
  heads = c * (2 * D + 2 * KH) + c * _weights(cfg, policy, context)
  if cfg.qk_norm:
    heads += 4 * (D + KH) + 8 * (N + K)
  if scanned:
    hidden = (c + (5 if cfg.mlp == 'relu2' else 20)) * F
  else:
    hidden = {'relu2': 4, 'swiglu': c + 12}.get(cfg.mlp, c + 4) * F
  return whole + (heads + hidden) / tensor


def _dots(cfg, policy, context, tensor, scanned: bool) -> float:
  """Bytes per token and layer: float32 outputs of the products.

  Whole: the stream, the output of attention. Split over `tensor`: queries,
  keys, values, attention logits, the output of the heads, the hidden layer.
  """
  del scanned
  D, N, F = cfg.width, cfg.num_heads, mlp_width(cfg)
  KH = (cfg.num_kv_heads or N) * D // N
  hidden = F * (2 if cfg.mlp == 'swiglu' else 1)
  square = _weights(cfg, policy, context)
  return 8 * D + 4 * (2 * D + 2 * KH + hidden + square) / tensor


def _block(cfg, policy, context, tensor, scanned: bool) -> float:
  """Bytes per token and layer: the float32 stream."""
  del policy, context, tensor, scanned
  return 4 * cfg.width


_KEPT = {'none': _everything, 'dots': _dots, 'block': _block}
