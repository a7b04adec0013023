"""Bytes on one device: state, gradients, activations.

The state is exact (`tests/train/plan` compares it with what is allocated); the
activations are the model's own estimate. docs/memory.md says how far the sum is
from what was measured.
"""

import dataclasses
import math

import jax

from craft_jax.config.settings import Config
from craft_jax.train.plan.model import Layout, Sketch

USABLE = 0.9  # of a device's memory; the rest is the runtime's and fragments
STATE = ('params', 'opt_state', 'ema', 'counts')  # parts of what stays
# Bytes of a CPU device that no buffer of a program accounts for: what threads
# and kernels use while it runs (docs/memory.md).
UNSEEN = 65e6
# What was measured over what is planned beside the state, least and most
# (docs/memory.md).
ERROR = {'cpu': (0.73, 1.40), 'gpu': (0.66, 1.03)}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device at the height of a step.

  Attributes:
    params: float32 parameters.
    opt_state: of the optimizer.
    ema: averaged parameters.
    counts: steps and such.
    gradients: float32, spread like the parameters; twice when accumulating.
    updates: of the optimizer, before they are added.
    kernels: gathered or rounded copies of the kernels.
    activations: kept from the forward for the backward pass.
    working: of the layer at work in the backward pass.
    logits: with what the loss makes of them.
  """

  params: float
  opt_state: float
  ema: float
  counts: float
  gradients: float
  updates: float
  kernels: float
  activations: float
  working: float
  logits: float

  @property
  def state(self) -> float:
    """What stays between steps."""
    return self.params + self.opt_state + self.ema + self.counts

  @property
  def total(self) -> float:
    """All at once, the safe side: gradients and activations overlap little."""
    return sum(dataclasses.astuple(self))


def memory(sketch: Sketch, layout: Layout, platform: str = 'tpu') -> Memory:
  """Bytes on one device of a layout that divides.

  Args:
    sketch: the run.
    layout: sizes of the mesh axes.
    platform: JAX's name; 'gpu' is NVIDIA's, where cuDNN never writes the
      attention weights.
  """
  cfg = sketch.cfg
  activations = sketch.model(platform).activation_bytes(
    rows_per_device(cfg, layout), cfg.model.context, layout.tensor
  )
  params = sketch.bytes('params', layout)
  return Memory(
    params=params,
    opt_state=sketch.bytes('opt_state', layout),
    ema=sketch.bytes('ema', layout),
    counts=sketch.bytes('counts', layout),
    gradients=params * (2 if cfg.train.accumulate > 1 else 1),
    updates=params,
    kernels=_kernels(sketch, layout),
    activations=activations.kept,
    working=activations.working,
    logits=activations.logits,
  )


def cache_bytes(sketch: Sketch) -> int:
  """What the layers keep of one text of the context, while it is written."""
  model = sketch.model()
  cache = jax.eval_shape(lambda: model.init_cache(1, model.context))
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(cache.layers)
  )


def rows_per_device(cfg: Config, layout: Layout) -> int:
  """Rows of a micro-batch that one device holds."""
  return cfg.train.batch_size // cfg.train.accumulate // layout.shards


def _kernels(sketch: Sketch, layout: Layout) -> float:
  """Copies of the blocks' kernels, rounded to the operands of the products.

  Over `fsdp` those of the layer at work and of the next are gathered. Else,
  without rematerialisation, bfloat16 copies of all stay for the backward pass,
  and with it those of the layer at work.
  """
  cfg = sketch.cfg.model
  item = 4 if cfg.precision == 'float32' else 2
  whole = sum(
    leaf.bytes // 4 * item // leaf.split(layout, 'tensor')
    for leaf in sketch.matrices
  )
  if layout.fsdp > 1:
    return 2 * whole / cfg.depth
  if cfg.precision == 'float32':
    return 0
  return whole if cfg.remat == 'none' else whole / cfg.depth
