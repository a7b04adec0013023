"""What the rest of the program asks of a model, whatever its architecture."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, Key

from craft_jax.model.cache import Cache
from craft_jax.model.precision import Policy
from craft_jax.model.sharding.rules import Rules
from craft_jax.types import Params


class ActivationBytes(NamedTuple):
  """Bytes on one device that a training step needs for its activations.

  Attributes:
    kept: from the forward pass for the backward pass.
    working: of the layer that the backward pass is in.
    logits: with what the loss makes of them.
  """

  kept: float
  working: float
  logits: float


@runtime_checkable
class Model(Protocol):
  """A language model: static settings and pure functions.

  Models of equal settings are equal and have equal hashes, so that what is
  compiled for one serves all. Parameters are nested dicts whose leaves are
  named by kind: `kernel` (a matrix, or a stack of them), `embedding`, `scale`
  or `bias`.

  Attributes:
    vocabulary_size: V.
    context: the most tokens seen at once.
    documents: whether nothing is seen across documents.
    policy: precision and platform.
    sharding_rules: of the parameters; gradients, moments and averages follow.
  """

  vocabulary_size: int
  context: int
  documents: bool
  policy: Policy
  sharding_rules: Rules

  def init(self, key: Key[Array, '']) -> Params:
    """Float32 parameters."""

  def apply(
    self,
    params: Params,
    x_BT: Int[Array, 'B T'],
    segment_BT: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T V']:
    """Logits of the next token at every position of a window.

    Args:
      params: from `init`.
      x_BT: tokens.
      segment_BT: document of each token.
      key: of dropout; without one there is none.
    """

  def init_cache(self, batch: int, length: int) -> Cache:
    """An empty cache for `batch` rows of at most `length` tokens."""

  def extend(
    self,
    params: Params,
    cache: Cache,
    x_BT: Int[Array, 'B T'],
    length_B: Int[Array, 'B'],
    segment_BT: Int[Array, 'B T'] | None = None,
    depth: int | None = None,
  ) -> tuple[Cache, Float[Array, 'B T V']]:
    """Reads the first `length_B` of T new tokens per row; logits at each.

    In any chunking it equals `apply` at every position.

    Args:
      params: from `init` or `for_decoding`.
      cache: what each row has read; must have room.
      x_BT: tokens.
      length_B: how many of them are read; logits past them are unspecified.
      segment_BT: document of each token.
      depth: draft with so many of the first layers, after which all read the
        same tokens again; an architecture may use all of them.
    """

  def for_decoding(self, params: Params) -> Params:
    """The same parameters, arranged for many small products."""

  def is_for_decoding(self, params: Params) -> bool:
    """Whether they need no `for_decoding`, being what it gave."""

  def is_hidden_matrix(self, names: tuple[str, ...]) -> bool:
    """Whether the parameter of this path is one of Muon's `[L, in, out]`."""

  def check_tensor(self, shards: int) -> None:
    """Refuses an axis `tensor` of so many devices.

    Raises:
      UserError: settings do not divide over them.
    """

  def flops_per_token(self, context: int) -> int:
    """Floating-point operations of forward and backward pass per token."""

  def activation_bytes(
    self, batch: int, context: int, tensor: int = 1
  ) -> ActivationBytes:
    """What a step needs of one device for `batch` rows.

    Args:
      batch: rows on the device.
      context: tokens of a row.
      tensor: devices that share the layers.
    """

  def tensor_bytes(self, batch: int, context: int) -> float:
    """Bytes that a step sums over the devices of the axis `tensor`."""


def param_count(params: Params) -> int:
  """Numbers in a tree of arrays (or of shapes)."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
