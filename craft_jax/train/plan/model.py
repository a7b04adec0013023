"""A run as the planner sees it: shapes and specs of its state, no arrays."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from jax.sharding import AxisType

from craft_jax.config.settings import Config, Mesh
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.model.build import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.model.protocol import Model
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.model.sharding import rules
from craft_jax.runtime import keys
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.state import init_state

_PARTS = ('params', 'opt_state', 'ema')  # of the state; the rest is counts


class Layout(NamedTuple):
  """Sizes of the mesh axes, in devices."""

  data: int = 1
  fsdp: int = 1
  tensor: int = 1

  @property
  def devices(self) -> int:
    """All of them."""
    return math.prod(self)

  @property
  def shards(self) -> int:
    """Parts of the batch."""
    return self.data * self.fsdp

  def __str__(self) -> str:
    return f'data={self.data} fsdp={self.fsdp} tensor={self.tensor}'


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of the state.

  Attributes:
    part: `params`, `opt_state`, `ema` or `counts`.
    names: its path within the part.
    shape: whole.
    itemsize: bytes of an entry.
    spec: mesh axis of each dim, or None.
  """

  part: str
  names: tuple[str, ...]
  shape: tuple[int, ...]
  itemsize: int
  spec: tuple[str | None, ...]

  @property
  def bytes(self) -> int:
    """Of the whole array."""
    return math.prod(self.shape) * self.itemsize

  def split(self, layout: Layout, *axes: str) -> int:
    """Parts that these axes cut it into."""
    return math.prod(getattr(layout, a) for a in self.spec if a and a in axes)

  def local(self, layout: Layout) -> int:
    """Bytes on one device."""
    return self.bytes // self.split(layout, *Layout._fields)


@dataclasses.dataclass(frozen=True)
class Sketch:
  """A run without devices.

  Attributes:
    cfg: its config, `model.precision` decided.
    vocabulary_size: tokens, the specials included.
    leaves: arrays of the state.
    flops_per_token: forward and backward, by `Model.flops_per_token`.
  """

  cfg: Config
  vocabulary_size: int
  leaves: tuple[Leaf, ...]
  flops_per_token: int

  def model(self, platform: str = 'tpu') -> Model:
    """The model on a platform; one of a plugin of JAX counts as a TPU."""
    known = PLATFORMS.get(platform, PLATFORMS['tpu'])
    return build(self.cfg.model, self.vocabulary_size, known)

  @functools.cached_property
  def params(self) -> tuple[Leaf, ...]:
    """The parameters alone."""
    return tuple(leaf for leaf in self.leaves if leaf.part == 'params')

  @functools.cached_property
  def matrices(self) -> tuple[Leaf, ...]:
    """The stacked kernels `[L, in, out]` of the layers."""
    model = self.model()
    return tuple(x for x in self.params if model.is_hidden_matrix(x.names))

  @property
  def num_params(self) -> int:
    """Numbers in the model."""
    return sum(math.prod(leaf.shape) for leaf in self.params)

  @property
  def state_bytes(self) -> int:
    """Of the whole state on all devices, which is what a checkpoint holds."""
    return sum(leaf.bytes for leaf in self.leaves)

  def bytes(self, part: str, layout: Layout) -> int:
    """Bytes of a part of the state on one device."""
    return sum(x.local(layout) for x in self.leaves if x.part == part)

  def check(self, layout: Layout) -> None:
    """Refuses a layout that this model or batch does not divide over.

    Raises:
      UserError: what does not divide.
    """
    if problem := self.problem(layout):
      raise UserError(problem)

  def problem(self, layout: Layout) -> str:
    """What does not divide over a layout; '' if all does."""
    train = self.cfg.train
    rows = train.batch_size // train.accumulate
    if rows % layout.shards:
      return (
        f'train.batch_size / train.accumulate = {rows} does not divide over '
        f'{layout.shards} devices (mesh.data x mesh.fsdp); use a multiple of '
        f'{layout.shards}'
      )
    try:
      self.model().check_tensor(layout.tensor)
    except UserError as e:
      return str(e)
    for leaf in self.params:
      for size, axis in zip(leaf.shape, leaf.spec, strict=False):
        if axis and size % getattr(layout, axis):
          return (
            f'{size} of parameter {"/".join(leaf.names)} does not divide over '
            f'mesh.{axis}={getattr(layout, axis)}; change the model or the mesh'
          )
    return ''


def mesh_is_set(cfg: Config) -> bool:
  """Whether a config says how its devices are laid out."""
  return cfg.mesh != dataclasses.replace(
    Mesh(), cpu_devices=cfg.mesh.cpu_devices
  )


def sketch(cfg: Config, vocabulary_size: int = 0) -> Sketch:
  """Shapes and specs of a run's state, by its own code; nothing is allocated.

  Args:
    cfg: the run; `model.precision=auto` becomes bfloat16, which every device
      of the table multiplies.
    vocabulary_size: tokens; 0 is that of bytes, or of `text.max_chars`.
  """
  if cfg.model.precision == 'auto':
    rounded = dataclasses.replace(cfg.model, precision='bfloat16')
    cfg = dataclasses.replace(cfg, model=rounded)
  byte = Vocabulary.byte()
  specials = byte.size - 256
  size = vocabulary_size or (cfg.text.max_chars or 256) + specials
  model = build(cfg.model, size, PLATFORMS['tpu'])
  optimizer = build_optimizer(cfg, model)
  state = jax.eval_shape(
    lambda key: init_state(model, optimizer, key, cfg.train.ema > 0),
    keys.from_seed(0),
  )
  # One device: the rules give their axes whatever these are to be divided by.
  mesh = jax.make_mesh(
    (1,) * len(mesh_lib.AXES),
    mesh_lib.AXES,
    axis_types=(AxisType.Auto,) * len(mesh_lib.AXES),
  )
  shardings = rules.state_shardings(
    state, state.params, mesh, model.sharding_rules
  )
  leaves = tuple(
    _leaf(path, shape, sharding)
    for (path, shape), sharding in zip(
      jax.tree_util.tree_leaves_with_path(state),
      jax.tree.leaves(shardings),
      strict=True,
    )
  )
  return Sketch(cfg, size, leaves, model.flops_per_token(cfg.model.context))


def _leaf(path, shape, sharding) -> Leaf:
  names = rules.names_of(path)
  part = names[0] if names[0] in _PARTS else 'counts'
  spec = tuple(sharding.spec)
  return Leaf(part, names[1:], shape.shape, shape.dtype.itemsize, spec)
