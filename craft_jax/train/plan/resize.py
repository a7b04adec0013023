"""The settings of a model of so many parameters, like another one."""

import dataclasses

import jax

from craft_jax.config.settings import Model
from craft_jax.model.build import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.model.protocol import param_count
from craft_jax.runtime import keys

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
  step = cfg.num_kv_heads or 1

  def sized(groups: int) -> tuple[int, Model]:
    model = _with_heads(cfg, groups * step)
    # Scanned layers count the same, and many are traced as one.
    scanned = dataclasses.replace(model, unroll=1)
    net = build(scanned, vocabulary_size, PLATFORMS['tpu'])
    return param_count(jax.eval_shape(net.init, keys.from_seed(0))), model

  most = _MOST_HEADS // step
  low, high = 0, 1  # multiples of the shared heads: too few, enough
  found = {}
  while high <= most:
    found[high] = sized(high)
    if found[high][0] >= params:
      break
    low, high = high, min(2 * high, most) if high < most else most + 1
  if high > most:
    return None
  while high - low > 1:  # by halving: parameters grow with heads
    middle = (low + high) // 2
    found[middle] = sized(middle)
    if found[middle][0] >= params:
      high = middle
    else:
      low = middle
  count, model = found[high]
  if low and params / found[low][0] < count / params:
    return found[low][1]
  return model


def _with_heads(cfg: Model, heads: int) -> Model:
  ratio = heads / cfg.num_heads
  return dataclasses.replace(
    cfg,
    num_heads=heads,
    width=cfg.width // cfg.num_heads * heads,
    depth=max(round(cfg.depth * ratio), 1),
    mlp_width=round(cfg.mlp_width * ratio),
  )
