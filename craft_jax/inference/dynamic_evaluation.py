"""Dynamic evaluation: the model is trained on each window after scoring it.

Krause et al. 2018 (arXiv:1709.07432): after a window is scored, the weights
take a gradient step on its new tokens and decay towards the trained weights,
so the score of a token depends on no later token. The metrics have names of
their own, since they are not comparable with those of a static model.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import eval_batches, num_eval_windows
from craft_jax.errors import UserError
from craft_jax.inference import ngram_cache
from craft_jax.model.losses import token_losses
from craft_jax.model.protocol import Model
from craft_jax.types import Batch, Params

# Metrics of `metrics.summary` that are reported for adaptive models.
FIGURES = ('loss', 'bpc', 'bpb', 'perplexity')

_WINDOWS_PER_CALL = 32
_TINY = 1e-8  # avoids 0 / 0 where all gradients have been zero


@dataclasses.dataclass(frozen=True)
class Adaptation:
  """Rates of dynamic evaluation.

  Attributes:
    learning_rate: change of a weight in a step whose gradient has the weight's
      root mean square size.
    decay: decay towards the trained weights, as a share per step.

  Raises:
    UserError: a field is out of range.
  """

  learning_rate: float = 5e-4
  decay: float = 1e-3

  def __post_init__(self) -> None:
    if not (self.learning_rate >= 0 and math.isfinite(self.learning_rate)):
      raise UserError(
        f'the dynamic rate {self.learning_rate} must be finite and at least 0'
      )
    if not 0 <= self.decay <= 1:
      raise UserError(f'the dynamic decay {self.decay} must be from 0 to 1')


class State(NamedTuple):
  """State of dynamic evaluation.

  Attributes:
    params: current weights.
    squares: sum of the squared gradients of each weight.
    steps: number of steps.
  """

  params: Params
  squares: Params
  steps: Int[Array, '']


def init(params: Params) -> State:
  """Initial state; a copy of the parameters, so that it can be donated."""
  return State(
    jax.tree.map(jnp.copy, params),
    jax.tree.map(jnp.zeros_like, params),
    jnp.zeros((), jnp.int32),
  )


def step(
  model: Model,
  trained: Params,
  state: State,
  batch: Batch,
  learning_rate: Float[Array, ''],
  decay: Float[Array, ''],
) -> tuple[State, Float[Array, 'B T']]:
  """Scores a batch, then takes a gradient step on it.

  With g the gradient of the mean loss and r its root mean square so far,
  `w += -learning_rate * g / r + decay * (trained - w)`. In Krause et al. r is
  that of the training text, which a checkpoint does not contain.

  Returns:
    The new state, and the nats of each target under the old weights, float32.
  """

  def loss(params):
    logits_BTV = model.apply(params, batch.x_BT, batch.segment_BT)
    nats_BT = token_losses(logits_BTV, batch.y_BT)[1]
    total = jnp.where(batch.weight_BT > 0, nats_BT * batch.weight_BT, 0.0)
    return total.sum() / jnp.maximum(batch.weight_BT.sum(), 1.0), nats_BT

  grads, nats_BT = jax.grad(loss, has_aux=True)(state.params)
  squares = jax.tree.map(lambda s, g: s + g * g, state.squares, grads)
  steps = state.steps + 1

  def move(weight, square, grad, trained):
    scaled = grad / (jnp.sqrt(square / steps) + _TINY)
    return weight - learning_rate * scaled + decay * (trained - weight)

  params = jax.tree.map(move, state.params, squares, grads, trained)
  return State(params, squares, steps), nats_BT


@functools.partial(jax.jit, static_argnames='model', donate_argnames='state')
def run(
  model: Model,
  trained: Params,
  state: State,
  batch: Batch,
  num_rows: Int[Array, ''],
  learning_rate: Float[Array, ''],
  decay: Float[Array, ''],
) -> tuple[State, Float[Array, 'B T']]:
  """Applies `step` to the first `num_rows` rows in turn, in one dispatch."""

  def body(i, carry):
    state, nats_BT = carry
    row = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, i, 1), batch)
    state, nats_1T = step(model, trained, state, row, learning_rate, decay)
    return state, jax.lax.dynamic_update_slice_in_dim(nats_BT, nats_1T, i, 0)

  nats_BT = jnp.zeros(batch.x_BT.shape)
  return jax.lax.fori_loop(0, num_rows, body, (state, nats_BT))


def token_nats(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  tokens: np.ndarray,
  adaptation: Adaptation,
  *,
  stride: int,
) -> np.ndarray:
  """`-ln p` of every token but the first, float32 `[N - 1]`, while adapting.

  Windows are those of `data.windows.eval_batches`; each is followed by one step
  on the `stride` tokens that it scores.

  Args:
    model: the model.
    params: trained parameters on one device; they are not changed.
    vocabulary: vocabulary of the tokens.
    tokens: token ids, `[N]`.
    adaptation: rates of the steps.
    stride: tokens between windows, from 1 to the context.

  Raises:
    UserError: the weights diverged.
  """
  context = model.context
  state = init(params)
  rates = np.float32(adaptation.learning_rate), np.float32(adaptation.decay)
  left = num_eval_windows(len(tokens), context, stride)
  before: Any = np.zeros((0, context), np.float32)
  found = []
  for batch in eval_batches(
    tokens,
    vocabulary,
    context=context,
    batch_size=_WINDOWS_PER_CALL,
    stride=stride,
    documents=model.documents,
  ):
    rows = np.int32(min(left, _WINDOWS_PER_CALL))
    left -= _WINDOWS_PER_CALL
    state, nats_BT = run(model, params, state, batch, rows, *rates)
    # Results are fetched one call late, so the device never waits for the host.
    found.append(jax.device_get(before))
    before = nats_BT
  window_BT = np.concatenate([*found, jax.device_get(before)])
  nats_N = np.append(window_BT[0], window_BT[1:, context - stride :])
  nats_N = nats_N[: len(tokens) - 1]
  if not np.isfinite(nats_N).all():
    raise UserError(
      f'the weights diverged at the dynamic rate {adaptation.learning_rate}; '
      'lower it'
    )
  return nats_N


def adaptive_nats(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  tokens: np.ndarray,
  static: np.ndarray | None,
  *,
  stride: int,
  adaptation: Adaptation | None,
  cache: bool,
) -> dict[str, np.ndarray]:
  """Scores of the requested adaptive models.

  Args:
    model: the model.
    params: trained parameters on one device.
    vocabulary: vocabulary of the tokens.
    tokens: token ids, `[N]`.
    static: nats under the trained weights, `[N - 1]`; needed for `cache`.
    stride: tokens between windows.
    adaptation: rates of dynamic evaluation; None disables it.
    cache: whether to mix in n-gram counts (`ngram_cache`).

  Returns:
    Nats of each token, `[N - 1]`: `dynamic` with adapting weights,
    `dynamic_cache` with trained weights and n-gram counts, `dynamic_both` with
    adapting weights and n-gram counts.
  """
  found: dict[str, np.ndarray] = {}
  if adaptation is not None:
    found['dynamic'] = token_nats(
      model, params, vocabulary, tokens, adaptation, stride=stride
    )
  if cache:
    assert static is not None
    found['dynamic_cache'] = ngram_cache.mixed_nats(
      tokens, static, vocabulary.size
    )
  if cache and adaptation is not None:
    found['dynamic_both'] = ngram_cache.mixed_nats(
      tokens, found['dynamic'], vocabulary.size
    )
  return found
