"""What each position can see, told by gradients.

The vocabulary has a token per position, so that the gradient of row s of the
embedding is the gradient of what position s reads. Masked weights are exactly
zero, so a gradient through them is too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

T = 10
DISTANCE_TS = np.arange(T)[:, None] - np.arange(T)


def sight(toy, segment_BT=None, **settings):
  """`[T, S]` bool: whether the logits at T depend on the input at S."""
  model, params = toy(vocabulary_size=T, **settings)
  weights_V = jnp.cos(jnp.arange(1.0, T + 1))

  def outputs(embedding_TD):
    moved = params | {'embed': {'embedding': embedding_TD}}
    logits_BTV = model.apply(moved, jnp.arange(T)[None], segment_BT)
    return logits_BTV[0] @ weights_V

  gradient_TSD = jax.jit(jax.jacrev(outputs))(params['embed']['embedding'])
  return np.asarray((gradient_TSD != 0).any(-1))


@pytest.mark.parametrize(
  'precision', [pytest.param('float32', marks=pytest.mark.slow), 'bfloat16']
)
def test_causal(precision, toy):
  """All of the past and nothing else; segments count only if asked for."""
  segment_BT = jnp.array([[0] * 5 + [1] * 5])
  seen_TS = sight(toy, segment_BT, precision=precision, num_kv_heads=2)
  np.testing.assert_array_equal(seen_TS, DISTANCE_TS >= 0)


@pytest.mark.parametrize(
  ('position', 'depth', 'reach'), [('rope', 1, 2), ('alibi', 2, 4)]
)
def test_window(position, depth, reach, toy):
  """A window of 3 is the token itself and two before; layers add up."""
  seen_TS = sight(toy, depth=depth, window=3, position=position)
  want_TS = (DISTANCE_TS >= 0) & (reach >= DISTANCE_TS)
  np.testing.assert_array_equal(seen_TS, want_TS)


def test_local_and_global(toy):
  """The global layer comes last and sees all."""
  seen_TS = sight(toy, depth=2, window=3, local_per_global=1)
  np.testing.assert_array_equal(seen_TS, DISTANCE_TS >= 0)


def test_documents(toy):
  segment_BT = jnp.array([[0, 0, 0, 0, 1, 1, 1, 2, 3, 3]])
  same_TS = np.equal.outer(segment_BT[0], segment_BT[0])
  seen_TS = sight(toy, segment_BT, documents=True, num_kv_heads=1)
  np.testing.assert_array_equal(seen_TS, (DISTANCE_TS >= 0) & same_TS)
