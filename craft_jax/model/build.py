"""From settings to a model, and what it costs."""

import math

import jax

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.model.precision import resolve_precision
from craft_jax.model.transformer import Decoder, layer_windows
from craft_jax.runtime import keys
from craft_jax.types import Params


def build(
  cfg: ModelConfig, vocabulary_size: int, cache: str = 'auto'
) -> Decoder:
  """The model of the settings.

  Args:
    cfg: of the run.
    vocabulary_size: V.
    cache: how keys and values are kept, one of `settings.CACHES`; 'auto' is
      what changes no number and is fastest.

  Returns:
    An object with `init(key)`, `apply(params, x_BT, segment_BT, key)`,
    `init_cache(batch, length)` and `extend(params, cache, x_BT, length_B)`;
    all else in the program uses only these.
  """
  return Decoder(cfg, vocabulary_size, resolve_precision(cfg.precision), cache)


def param_count(params: Params) -> int:
  """Numbers in a tree of arrays (or of shapes)."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flops_per_symbol(cfg: ModelConfig, vocabulary_size: int) -> int:
  """Floating-point operations of forward and backward per symbol.

  6 per parameter used in a product plus 12 per layer, head entry and visible
  position for the two attention products (PaLM, arXiv:2204.02311, appendix B;
  causal masking is not credited). Embedding look-ups count nothing;
  rematerialised work counts nothing.
  """
  shapes = jax.eval_shape(build(cfg, vocabulary_size).init, keys.from_seed(0))
  kernels = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    if path[-1].key == 'kernel'
  ]
  head = cfg.width * vocabulary_size if cfg.tied else 0
  seen = sum(min(w or cfg.context, cfg.context) for w in layer_windows(cfg))
  return 6 * (param_count(kernels) + head) + 12 * cfg.width * seen
