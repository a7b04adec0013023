"""The training state, which holds all that a run needs to resume exactly."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from craft_jax.model.protocol import Model
from craft_jax.model.sharding import rules
from craft_jax.runtime import keys
from craft_jax.types import Batch, MetricSums, Params


@flax.struct.dataclass
class Usual:
  """Running statistics of loss and gradient norm over good steps.

  Attributes:
    count: number of good steps.
    mean_2: exponential moving averages, float32.
    variance_2: exponential moving averages of squared deviations, float32.
  """

  count: Int[Array, '']
  mean_2: Float[Array, '2']
  variance_2: Float[Array, '2']


@flax.struct.dataclass
class State:
  """The training state, a pytree that is sharded like its parameters.

  Attributes:
    step: number of steps done, including skipped ones.
    skipped: number of bad steps that were skipped.
    rollbacks: number of rollbacks to a checkpoint.
    data_offset: batches skipped by rollbacks; the data index is step + offset.
    usual: statistics of loss and gradient norm, to detect spikes.
    params: parameters, float32.
    opt_state: optimizer state.
    ema: exponential moving average of the parameters, or None.
  """

  step: Int[Array, '']
  skipped: Int[Array, '']
  rollbacks: Int[Array, '']
  data_offset: Int[Array, '']
  usual: Usual
  params: Params
  opt_state: Any
  ema: Params | None

  @property
  def eval_params(self) -> Params:
    """Parameters for evaluation and sampling: the average, if there is one."""
    return self.params if self.ema is None else self.ema


Step = Callable[[State, Batch, Key[Array, '']], tuple[State, MetricSums]]


def init_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  key: Key[Array, ''],
  ema: bool,
  params: Params | None = None,
) -> State:
  """Initializes the state before the first step.

  Args:
    model: model to train.
    optimizer: its optimizer.
    key: key of the initialization.
    ema: whether to keep an average of the parameters.
    params: parameters to start from; by default `model.init(key)`.
  """
  if params is None:
    params = model.init(key)
  return State(
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    rollbacks=jnp.zeros((), jnp.int32),
    data_offset=jnp.zeros((), jnp.int32),
    usual=Usual(jnp.zeros((), jnp.int32), jnp.zeros(2), jnp.zeros(2)),
    params=params,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


def abstract_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  ema: bool,
  mesh: Mesh,
) -> State:
  """Shapes and shardings of `init_state`, without allocating anything."""
  shapes = jax.eval_shape(
    lambda key: init_state(model, optimizer, key, ema), keys.from_seed(0)
  )
  shardings = rules.state_shardings(
    shapes, shapes.params, mesh, model.sharding_rules
  )
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )
