"""Many training steps in one dispatch; pure."""

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
  """Supplies each dispatch with device arrays, and each step with a batch.

  Attributes:
    max_steps: largest number of steps per dispatch.
  """

  max_steps: int

  @property
  def wait_seconds(self) -> float:
    """Seconds that the loop has waited for data so far."""

  def source(self, num_steps: int) -> Any:
    """Device arrays for the next `num_steps` steps."""

  def fetch(self, source: Any, i: Any, data_index: Any, key: Any) -> Batch:
    """Makes the batch of a step; pure.

    Args:
      source: device arrays of the dispatch.
      i: number of the step in the dispatch, a traced integer.
      data_index: number of the batch in the run, a traced integer.
      key: PRNG key of the run's augmentation.
    """

  def close(self) -> None:
    """Stops prefetching."""


def make_run(
  step: Step,
  fetch: Fetch,
  keep_rows: int,
  past_bad_steps: bool = False,
) -> Callable[..., tuple[State, MetricSums, Bool[Array, '']]]:
  """Makes a function that runs many training steps in one dispatch.

  Args:
    step: training step.
    fetch: makes the batch of a step, as `Feed.fetch`.
    keep_rows: largest number of steps, the length of the metric buffers.
    past_bad_steps: whether to continue after a bad step; otherwise the
      remaining steps are not run.

  Returns:
    `(state, source, key, num_steps) -> state, rows, finite`, with `num_steps`
    traced. Each metric in `rows` has `keep_rows` entries, of which the first
    `num_steps` are set; `finite` is whether all parameters are finite.
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
