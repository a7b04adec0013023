"""Many steps in one call of the device. Pure."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Key

from craft_jax.train.state import State, Step
from craft_jax.types import Batch, MetricSums

Fetch = Callable[[Any, Int[Array, ''], Int[Array, ''], Key[Array, '']], Batch]


@runtime_checkable
class Feed(Protocol):
  """Gives each dispatch its source, and each step its batch.

  Attributes:
    max_steps: most steps per dispatch.
    wait_seconds: time the loop has waited for data so far.
  """

  max_steps: int

  @property
  def wait_seconds(self) -> float:
    """Seconds."""

  def source(self, num_steps: int) -> Any:
    """The device arrays of the next `num_steps` steps."""

  def fetch(self, source: Any, i: Any, data_index: Any, key: Any) -> Batch:
    """Pure: the batch of the i-th step of a dispatch; `key` is the run's."""

  def close(self) -> None:
    """Stops what reads ahead."""


def make_run(
  step: Step,
  fetch: Fetch,
  keep_rows: int,
  past_bad_steps: bool = False,
) -> Callable[..., tuple[State, MetricSums, Bool[Array, '']]]:
  """Many steps in one dispatch.

  Args:
    step: the training step.
    fetch: `(source, i, data_index, key) -> Batch` of the i-th step of the
      call; the key is of the run's augmentation.
    keep_rows: most steps per call: rows of the metric buffers.
    past_bad_steps: go on after a bad step; else the rest of the call is a
      no-op.

  Returns:
    `(state, source, key, num_steps) -> state, rows, finite`: each metric has
    `keep_rows` entries, of which the first `num_steps` are set; `finite` says
    whether the parameters still are. The trip count is traced.
  """

  def run(state, source, key, num_steps):
    data_key, dropout_key = jax.random.split(key)

    def body(carry):
      i, state, rows, _ = carry
      data_index = state.step + state.data_offset
      with jax.named_scope('data'):
        batch = fetch(source, i, data_index, data_key)
      step_key = jax.random.fold_in(dropout_key, data_index)
      state, sums = step(state, batch, step_key)
      rows = {name: rows[name].at[i].set(sums[name]) for name in sums}
      return i + 1, state, rows, past_bad_steps | (sums['good'] > 0)

    def going(carry):
      i, _, _, going_on = carry
      return (i < num_steps) & going_on

    zero = jnp.zeros((), jnp.int32)
    shapes = jax.eval_shape(
      lambda: step(state, fetch(source, zero, zero, key), key)[1]
    )
    rows = {name: jnp.zeros(keep_rows) for name in shapes}
    carry = (zero, state, rows, jnp.ones((), bool))
    _, state, rows, _ = jax.lax.while_loop(going, body, carry)
    return state, rows, jnp.isfinite(optax.tree.norm(state.params))

  return run
