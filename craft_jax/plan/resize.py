"""The settings of a model of so many parameters, like another one."""

import dataclasses

import jax

from craft_jax.model import build, param_count
from craft_jax.settings import Model

_MOST_HEADS = 128


def resized(cfg: Model, vocabulary_size: int, params: float) -> Model | None:
  """The nearest model with heads of the same size and the same proportions.

  Args:
    cfg: a model whose heads' size, ratio of depth to width and of the MLP to
      the width are kept.
    vocabulary_size: V.
    params: what to come near, all parameters counted.

  Returns:
    None where no width up to 128 heads reaches it.
  """
  below = None
  for heads in range(1, _MOST_HEADS + 1):
    if heads % (cfg.num_kv_heads or 1):
      continue
    model = _with_heads(cfg, heads)
    count = param_count(
      jax.eval_shape(build(model, vocabulary_size).init, jax.random.key(0))
    )
    if count >= params:
      if below and params / below[0] < count / params:
        return below[1]
      return model
    below = count, model
  return None


def _with_heads(cfg: Model, heads: int) -> Model:
  ratio = heads / cfg.num_heads
  return dataclasses.replace(
    cfg,
    num_heads=heads,
    width=cfg.width // cfg.num_heads * heads,
    depth=max(round(cfg.depth * ratio), 1),
    mlp_width=round(cfg.mlp_width * ratio),
  )
