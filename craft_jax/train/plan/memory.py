"""Bytes on one device: state, gradients, activations.

The state is exact (`tests/train/plan` compares it with what is allocated). Of
scanned layers the kept activations are what JAX's own differentiation asks to
keep (compared too), of unrolled ones what XLA then keeps of it. The working set
is an estimate: a compiler merges, fuses and reorders. docs/memory.md says how
far the sum is from what was measured.
"""

import dataclasses

from craft_jax.config.settings import Config
from craft_jax.model.causal import cpu_blocks
from craft_jax.model.layers import mlp_width
from craft_jax.model.transformer import unrolled
from craft_jax.train.plan.layout import Layout
from craft_jax.train.plan.model import Sketch

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
  symbols = symbols_per_device(cfg, layout)
  params = sketch.bytes('params', layout)
  return Memory(
    params=params,
    opt_state=sketch.bytes('opt_state', layout),
    ema=sketch.bytes('ema', layout),
    counts=sketch.bytes('counts', layout),
    gradients=params * (2 if cfg.train.accumulate > 1 else 1),
    updates=params,
    kernels=_kernels(sketch, layout),
    activations=symbols * kept(cfg, layout.tensor, platform),
    working=symbols * working(cfg, layout.tensor, platform),
    logits=symbols * logits(cfg, sketch.vocabulary_size),
  )


def cache_bytes(cfg: Config) -> int:
  """Keys and values of one text of the context, while it is written."""
  m = cfg.model
  keys_width = (m.num_kv_heads or m.num_heads) * (m.width // m.num_heads)
  return 2 * m.depth * keys_width * m.context * _item(cfg)


def symbols_per_device(cfg: Config, layout: Layout) -> int:
  """Symbols of a micro-batch that one device holds."""
  rows = cfg.train.batch_size // cfg.train.accumulate // layout.shards
  return rows * cfg.model.context


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


def logits(cfg: Config, vocabulary_size: int) -> int:
  """Bytes per symbol, all float32: logits, exponentials, gradient (and cap)."""
  return 4 * vocabulary_size * (4 if cfg.model.logit_cap else 3)


def kept(cfg: Config, tensor: int = 1, platform: str = 'tpu') -> float:
  """Bytes per symbol that wait for the backward pass.

  What a layer keeps is in `_KEPT`. Outside the layers stay the input of the
  last norm and its normalized self (float32) and the input of the head.
  """
  m = cfg.model
  ends = (8 + _item(cfg)) * m.width
  scanned = unrolled(m) < m.depth
  return m.depth * _KEPT[m.remat](cfg, tensor, platform, scanned) + ends


def working(cfg: Config, tensor: int = 1, platform: str = 'tpu') -> float:
  """Bytes per symbol of the layer that the backward pass is in.

  Gradients of the attention weights, which become those of the logits in
  place and are rounded, of the hidden layer and of the stream; under remat also
  what the layer would have kept without.
  """
  m = cfg.model
  rounded = 0 if _item(cfg) == 4 else _item(cfg)
  square = _weights(cfg, platform, at_once=True)
  split = (4 + rounded) * square + 8 * mlp_width(m)
  grads = split / tensor + 12 * m.width
  if m.remat == 'none':
    return grads
  return grads + _everything(cfg, tensor, platform, True)


def _item(cfg: Config) -> int:
  """Bytes of an operand of a product."""
  return 4 if cfg.model.precision == 'float32' else 2


def _weights(cfg: Config, platform: str, at_once: bool = False) -> float:
  """Attention weights per symbol and layer, in numbers.

  All of the square; on a CPU what its blocks compute of it; on a GPU none,
  where cuDNN has a kernel (`causal.fuses`), but for the normalizers.

  Args:
    cfg: the run.
    platform: JAX's name.
    at_once: only of one block at a time.
  """
  m = cfg.model
  head_dim = m.width // m.num_heads
  fits = head_dim % 8 == 0 and head_dim <= 128 and m.context % 2 == 0
  if platform == 'gpu' and _item(cfg) == 2 and fits:
    return 2 * m.num_heads
  if platform != 'cpu':
    return m.num_heads * m.context
  sizes = [(end - start) * end for start, end in cpu_blocks(m.context)]
  return m.num_heads * (max(sizes) if at_once else sum(sizes)) / m.context


def _everything(
  cfg: Config, tensor: int, platform: str, scanned: bool
) -> float:
  """Bytes per symbol and layer without rematerialisation.

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
  m, c = cfg.model, _item(cfg)
  D, N, F = m.width, m.num_heads, mlp_width(m)
  K = m.num_kv_heads or N
  KH = K * D // N
  inputs = 2 if c == 4 else 4 + (m.mlp == 'swiglu')
  whole = 16 * D + 16 + c * inputs * D + (2 * D if m.dropout else 0)
  heads = c * (2 * D + 2 * KH) + c * _weights(cfg, platform)
  if m.qk_norm:
    heads += 4 * (D + KH) + 8 * (N + K)
  if scanned:
    hidden = (c + (5 if m.mlp == 'relu2' else 20)) * F
  else:
    hidden = {'relu2': 4, 'swiglu': c + 12}.get(m.mlp, c + 4) * F
  return whole + (heads + hidden) / tensor


def _dots(cfg: Config, tensor: int, platform: str, scanned: bool) -> float:
  """Bytes per symbol and layer: float32 outputs of the products.

  Whole: the stream, the output of attention. Split over `tensor`: queries,
  keys, values, attention logits, the output of the heads, the hidden layer.
  """
  del scanned
  m = cfg.model
  D, N, F = m.width, m.num_heads, mlp_width(m)
  KH = (m.num_kv_heads or N) * D // N
  hidden = F * (2 if m.mlp == 'swiglu' else 1)
  square = _weights(cfg, platform)
  return 8 * D + 4 * (2 * D + 2 * KH + hidden + square) / tensor


def _block(cfg: Config, tensor: int, platform: str, scanned: bool) -> float:
  """Bytes per symbol and layer: the float32 stream."""
  del tensor, platform, scanned
  return 4 * cfg.model.width


_KEPT = {'none': _everything, 'dots': _dots, 'block': _block}
