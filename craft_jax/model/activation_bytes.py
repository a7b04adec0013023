"""Activation memory of the transformer in bytes per token of a micro-batch.

For scanned layers the saved activations are the residuals that JAX's autodiff
saves (a test compares them); for unrolled layers they are those that XLA still
keeps after fusion. The working set is an estimate, because the compiler merges,
fuses and reorders. docs/memory.md compares the sum with measurements.
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
  """Bytes saved for backward, of one layer's backward pass, and of the logits.

  Outside the layers, the input and output of the final norm (float32) and the
  input of the head are saved. The logits, their exponentials, their gradient
  and, with `logit_cap`, the capped logits are float32.

  Args:
    cfg: model settings.
    policy: precision of matrix products and the platform.
    vocabulary_size: number of tokens in the vocabulary.
    context: tokens per row.
    tensor: size of the tensor-parallel mesh axis.
  """
  scanned = unrolled(cfg) < cfg.depth
  layer = _KEPT[cfg.remat](cfg, policy, context, tensor, scanned)
  ends = (8 + _item(policy)) * cfg.width
  logits = 4 * vocabulary_size * (4 if cfg.logit_cap else 3)
  working = _working(cfg, policy, context, tensor)
  return cfg.depth * layer + ends, working, logits


def _working(cfg, policy, context, tensor) -> float:
  """Bytes per token of the layer whose backward pass is running.

  Gradients of the attention weights (reused in place for those of the attention
  logits, and rounded), of the MLP's hidden layer and of the residual stream;
  with rematerialisation also the layer's recomputed activations.
  """
  rounded = 0 if _item(policy) == 4 else _item(policy)
  square = _weights(cfg, policy, context, at_once=True)
  split = (4 + rounded) * square + 8 * mlp_width(cfg)
  grads = split / tensor + 12 * cfg.width
  if cfg.remat == 'none':
    return grads
  return grads + _everything(cfg, policy, context, tensor, True)


def _item(policy: Policy) -> int:
  """Bytes per element of a matrix product's operands."""
  return 4 if policy.precision == 'float32' else 2


def _weights(cfg, policy, context, at_once: bool = False) -> float:
  """Number of attention weights per token and layer.

  Counts the part of the `[T, T]` square that `causal` computes, or its largest
  block if `at_once`. cuDNN's fused kernel stores only the normalizers.
  """
  if fuses(policy, context, cfg.width // cfg.num_heads):
    return 2 * cfg.num_heads
  sizes = [
    (end - start) * end for start, end in blocks(context, policy.platform.name)
  ]
  return cfg.num_heads * (max(sizes) if at_once else sum(sizes)) / context


def _everything(cfg, policy, context, tensor, scanned: bool) -> float:
  """Bytes saved per token and layer without rematerialisation.

  With c bytes per operand (2 in bfloat16), D width, K H the keys' width, F
  hidden width, N heads, S context, K key/value heads:

    replicated over `tensor`
      input and normalized input of both norms     4 x 4 D, and 4 scalars
      rounded inputs of query, key, value, in      c x 4 D (5 D with a gate)
        in float32 they are one array per norm     4 x 2 D
      dropped entries (dropout)                    2 D
    sharded over `tensor`
      rounded queries, keys, values                c x (D + 2 K H)
      queries and keys before qk_norm, 2 scalars   4 x (D + K H + 2 N + 2 K)
      rounded attention weights                    c x N S, see `_weights`
      rounded output of the heads                  c x D
      hidden layer when layers are scanned: the rounded activation c x F, and
        relu2: one derivative and a mask           5 x F
        gelu and swiglu: their derivatives         20 x F
      hidden layer when layers are unrolled (XLA recomputes derivatives):
        relu2: the input                           4 x F
        gelu: the input, rounded activation        (c + 4) x F
        swiglu: both inputs, the gate, rounded     (c + 12) x F
      any other activation is counted as gelu
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
  """Bytes saved per token and layer with `remat=dots`.

  Float32 outputs of matrix products. Replicated: the residual stream and the
  output of attention. Sharded over `tensor`: queries, keys, values, attention
  logits, the output of the heads and the hidden layer.
  """
  del scanned
  D, N, F = cfg.width, cfg.num_heads, mlp_width(cfg)
  KH = (cfg.num_kv_heads or N) * D // N
  hidden = F * (2 if cfg.mlp == 'swiglu' else 1)
  square = _weights(cfg, policy, context)
  return 8 * D + 4 * (2 * D + 2 * KH + hidden + square) / tensor


def _block(cfg, policy, context, tensor, scanned: bool) -> float:
  """Bytes saved per token and layer with `remat=block`: the float32 input."""
  del policy, context, tensor, scanned
  return 4 * cfg.width


_KEPT = {'none': _everything, 'dots': _dots, 'block': _block}
