"""Everything a run must keep to go on exactly."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from craft_jax.model.transformer import Decoder
from craft_jax.sharding import rules
from craft_jax.types import Params


@flax.struct.dataclass
class State:
  """The training state: a pytree, sharded like its parameters.

  Attributes:
    step: optimizer steps done.
    data_offset: data windows passed over; the data index is step + offset.
    params: float32 parameters.
    opt_state: of the optimizer.
    ema: averaged parameters, or None.
  """

  step: Int[Array, '']
  data_offset: Int[Array, '']
  params: Params
  opt_state: Any
  ema: Params | None

  @property
  def eval_params(self) -> Params:
    """What is evaluated and sampled: the average where there is one."""
    return self.params if self.ema is None else self.ema


def init_state(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  key: Key[Array, ''],
  ema: bool,
) -> State:
  """The state before the first step."""
  params = model.init(key)
  return State(
    step=jnp.zeros((), jnp.int32),
    data_offset=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


def abstract_state(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  ema: bool,
  mesh: Mesh,
) -> State:
  """Shapes and shardings of `init_state`, nothing allocated."""
  shapes = jax.eval_shape(
    lambda key: init_state(model, optimizer, key, ema), jax.random.key(0)
  )
  shardings = rules.state_shardings(shapes, shapes.params, mesh)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )
