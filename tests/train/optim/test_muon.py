import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.train.optim.muon import (
  orthogonalize,
  polar_coefficients,
  scale_by_muon,
)

SHAPES = ((2, 16, 16), (3, 16, 64), (2, 48, 16))


def _grads(seed=0, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def _singular_values(x):
  return np.linalg.svd(np.asarray(x), compute_uv=False)


@pytest.mark.parametrize('precision', ['bfloat16', 'float32'])
def test_update_is_orthogonal_and_scaled(precision):
  muon = scale_by_muon(0.9, precision)
  grads = _grads()
  updates, _ = jax.jit(muon.update)(grads, muon.init(grads))
  for grad, update in zip(grads, updates, strict=True):
    _, rows, columns = grad.shape
    scale = np.sqrt(max(1, columns / rows))
    values = _singular_values(update) / scale
    assert values.min() > 0.7 and values.max() < 1.3
    assert np.sqrt(np.mean((values - 1) ** 2)) < 0.25
    rms = np.sqrt(np.mean(np.square(update)))
    np.testing.assert_allclose(rms, scale / np.sqrt(max(rows, columns)), 0.25)


def test_converges_to_the_polar_factor():
  coefficients = polar_coefficients(8)
  for x in _grads(1, ((2, 16, 16), (2, 16, 64))):
    u, _, vt = np.linalg.svd(np.asarray(x), full_matrices=False)
    got = orthogonalize(x, coefficients, 'float32')
    np.testing.assert_allclose(got, u @ vt, atol=2e-3)


def test_momentum_is_nesterov():
  muon = scale_by_muon(0.9, 'float32')
  g, h = _grads(0), _grads(1)
  _, state = muon.update(g, muon.init(g))
  got, state = muon.update(h, state)
  mean = [0.9 * 0.1 * a + 0.1 * b for a, b in zip(g, h, strict=True)]
  for a, b in zip(state.momentum, mean, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  mixed = [0.9 * m + 0.1 * b for m, b in zip(mean, h, strict=True)]
  plain = scale_by_muon(0.0, 'float32')
  want, _ = plain.update(mixed, plain.init(mixed))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e30])
def test_size_of_the_gradient_does_not_matter(scale):
  x = _grads()[1]
  coefficients = polar_coefficients(4)
  want = orthogonalize(x, coefficients, 'float32')
  got = orthogonalize(x * scale, coefficients, 'float32')
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_zero_stays_zero_and_nan_shows():
  coefficients = polar_coefficients(4)
  x = jnp.zeros((2, 4, 8)).at[1].set(jnp.nan)
  got = orthogonalize(x, coefficients, 'bfloat16')
  assert not got[0].any() and np.isnan(got[1]).all()


def test_coefficients_are_the_minimax_of_their_interval():
  # One quintic on [0.1, 1] meets its largest error four times, in turns.
  ((a, b, c),) = polar_coefficients(1, lowest=0.1)
  t = np.linspace(0.1, 1, 100_001)
  error = a * t + b * t**3 + c * t**5 - 1
  peak = np.abs(error).max()
  turns = error[np.abs(error) > peak * (1 - 1e-6)]
  assert (np.diff(np.sign(turns)) != 0).sum() == 3
  t = np.linspace(3e-3, 1, 10_001)
  for a, b, c in polar_coefficients(6):
    t = a * t + b * t**3 + c * t**5
  assert np.abs(t - 1).max() < 0.01


_PROGRAM = """
import json, sys
import jax
jax.config.update('jax_num_cpu_devices', int(sys.argv[1]))
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from craft_jax.model.sharding.rules import IN, OUT
from craft_jax.train.optim.muon import scale_by_muon
table = {('query', 'kernel'): IN, ('in', 'kernel'): IN, ('out', 'kernel'): OUT}
n = int(sys.argv[1])
mesh = jax.make_mesh((1, n, 1), ('data', 'fsdp', 'tensor'),
                     axis_types=(AxisType.Auto,) * 3)
rng = np.random.default_rng(0)
shapes = {'query': (3, 16, 16), 'in': (3, 16, 64), 'out': (3, 64, 16)}
grads = {name: {'kernel': jnp.asarray(rng.normal(size=s), jnp.float32)}
         for name, s in shapes.items()}
grads = jax.device_put(grads, NamedSharding(mesh, PartitionSpec()))
out = {}
for precision in ('bfloat16', 'float32'):
  for name, share in (('sharded', mesh), ('replicated', None)):
    muon = scale_by_muon(0.9, precision, share, table)
    def run(grads, steps):
      def body(_, carry):
        return muon.update(grads, carry[1])
      return jax.lax.fori_loop(0, steps, body, (grads, muon.init(grads)))[0]
    updates = jax.jit(run)(grads, 2)
    out[f'{precision} {name}'] = [
      np.asarray(u).tolist() for u in jax.tree.leaves(updates)]
assert len(jax.devices()) == n
print(json.dumps(out))
"""


@pytest.mark.slow
def test_one_device_two_devices_sharded_and_replicated_agree():
  """Each in its own process: the devices are set before JAX starts."""
  root = pathlib.Path(__file__).parents[3]
  env = os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'}
  env.pop('XLA_FLAGS', None)
  results = []
  for devices in ('1', '2'):
    done = subprocess.run(
      [sys.executable, '-c', _PROGRAM, devices],
      capture_output=True,
      text=True,
      env=env,
      check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results.append(json.loads(done.stdout.splitlines()[-1]))
  for precision, atol in (('float32', 1e-4), ('bfloat16', 2e-2)):
    want = results[0][f'{precision} replicated']
    for result in results:
      for name in ('sharded', 'replicated'):
        got = result[f'{precision} {name}']
        for a, b in zip(got, want, strict=True):
          np.testing.assert_allclose(a, b, atol=atol)
