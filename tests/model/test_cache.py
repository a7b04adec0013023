"""Writing into the cache."""

import jax.numpy as jnp
import numpy as np

from craft_jax.model import cache


def test_each_row_at_its_start_and_nothing_off_the_end():
  old_BKSH = -jnp.ones((3, 2, 5, 1))
  new_BKTH = jnp.arange(18.0).reshape(3, 2, 3, 1)
  got = cache.write(old_BKSH, new_BKTH, jnp.array([0, 3, 5]))[..., 0]
  want = [
    [[0, 1, 2, -1, -1], [3, 4, 5, -1, -1]],
    [[-1, -1, -1, 6, 7], [-1, -1, -1, 9, 10]],
    [[-1] * 5, [-1] * 5],
  ]
  np.testing.assert_array_equal(got, want)
