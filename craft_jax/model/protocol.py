"""The interface that every architecture implements."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, Key

from craft_jax.model.cache import Cache
from craft_jax.model.precision import Policy
from craft_jax.model.sharding.rules import Rules
from craft_jax.types import Params


class ActivationBytes(NamedTuple):
  """Activation memory of a training step in bytes per device.

  Attributes:
    kept: activations saved by the forward pass for the backward pass.
    working: temporary arrays of the layer whose backward pass is running.
    logits: logits, their gradients and temporary arrays of the loss.
  """

  kept: float
  working: float
  logits: float


@runtime_checkable
class Model(Protocol):
  """A language model: static settings and pure functions.

  Models with equal settings are equal and have equal hashes, so that they share
  compiled functions. Parameters are nested dicts whose leaves are named by
  kind: `kernel` (a matrix or a stack of them), `embedding`, `scale` or `bias`.

  Attributes:
    vocabulary_size: number of tokens in the vocabulary.
    context: largest number of tokens the model sees at once.
    documents: whether attention stays within a document.
    policy: precision of matrix products and the platform.
    sharding_rules: mesh axes of the parameters' dims; optimizer state and
      averaged parameters are sharded like the parameters.
  """

  vocabulary_size: int
  context: int
  documents: bool
  policy: Policy
  sharding_rules: Rules

  def init(self, key: Key[Array, '']) -> Params:
    """Initializes the parameters, in float32."""

  def apply(
    self,
    params: Params,
    x_BT: Int[Array, 'B T'],
    segment_BT: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T V']:
    """Float32 logits of the next token at every position of a window.

    Args:
      params: from `init`.
      x_BT: tokens.
      segment_BT: document number of each token; None is a single document.
      key: PRNG key for dropout; None disables it.
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
    """Reads new tokens into the cache; returns it and their logits.

    Serves prefill, decoding and the verification of drafts. However a text is
    divided into calls, the logits equal those of `apply`.

    Args:
      params: from `init` or `for_decoding`.
      cache: cache with room for the new tokens.
      x_BT: new tokens.
      length_B: number of valid tokens per row; logits past it are unspecified.
      segment_BT: document number of each token; None is a single document.
      depth: number of first layers to run, for cheap drafts; all layers must
        read these tokens again afterwards. An architecture may ignore it.
    """

  def for_decoding(self, params: Params) -> Params:
    """Rearranges parameters for fast decoding; results stay the same."""

  def is_for_decoding(self, params: Params) -> bool:
    """Whether `params` were returned by `for_decoding`."""

  def is_hidden_matrix(self, names: tuple[str, ...]) -> bool:
    """Whether Muon updates the parameter at this path, shape `[L, in, out]`."""

  def check_tensor(self, shards: int) -> None:
    """Checks that the model divides over `shards` devices of axis `tensor`.

    Raises:
      UserError: it does not; the message names the setting.
    """

  def flops_per_token(self, context: int) -> int:
    """Floating-point operations per token, forward and backward pass."""

  def activation_bytes(
    self, batch: int, context: int, tensor: int = 1
  ) -> ActivationBytes:
    """Estimates the activation memory of a training step on one device.

    Args:
      batch: rows of the micro-batch on the device.
      context: tokens per row.
      tensor: size of the tensor-parallel mesh axis.
    """

  def tensor_bytes(self, batch: int, context: int) -> float:
    """Bytes that a training step all-reduces over the mesh axis `tensor`."""


def param_count(params: Params) -> int:
  """Number of parameters in a tree of arrays or shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
