"""The same training on every mesh: batches, losses, and where arrays lie."""

import math

import numpy as np
import pytest

STEPS = 20
# Axis sizes, and what is set besides. Micro-batches are the whole batch in
# another order of summation, so they too must agree with one device.
MESHES = {
  'data=8': [],
  'fsdp=8': ['model.unroll=1'],
  'data=2 tensor=4': ['model.unroll=1'],
  'fsdp=4 tensor=2': [],
  'data=2 fsdp=2 tensor=2': ['train.accumulate=2'],
}


def sizes(mesh):
  given = dict(part.split('=') for part in mesh.split())
  return {n: int(given.get(n, 1)) for n in ('data', 'fsdp', 'tensor')}


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_every_mesh_trains_alike(eight_devices, optimizer):
  grads_of = 'fsdp=4 tensor=2' if optimizer == 'adamw' else ''
  common = [f'optim.name={optimizer}', 'model.context=16', 'model.depth=2']
  cases = [
    [*common, *more, *(f'mesh.{n}={s}' for n, s in sizes(mesh).items())]
    for mesh, more in MESHES.items()
  ]
  want, *results = eight_devices(
    {'overrides': common, 'one_device': True, 'steps': STEPS},
    *(
      # Gradients depend neither on who uses them nor on how many there are.
      {'overrides': case, 'steps': STEPS, 'grads': grads_of == mesh}
      for mesh, case in zip(MESHES, cases, strict=True)
    ),
  )
  assert want['losses'][-1] < want['losses'][0] - 1, 'nothing was learnt'
  for mesh, got in zip(MESHES, results, strict=True):
    assert got['batches'] == want['batches'], mesh
    # Sums in another order: in 20 steps up to 6e-7 apart in float32, whose
    # epsilon is 1.2e-7. The norms are there because neither optimizer would
    # notice gradients that are all twice as large.
    for name in ('losses', 'norms', 'averages'):
      np.testing.assert_allclose(
        got[name], want[name], rtol=5e-6, err_msg=f'{mesh}: {name}'
      )
    _check_places(got, sizes(mesh))


def _check_places(result, mesh):
  """Kernels, and all that is like them, are spread as declared."""
  paths = result['shards']
  for part in ('params', 'ema', 'opt_state'):
    assert any(p.startswith(part) and p.endswith('in/kernel') for p in paths)
  both = mesh['fsdp'] * mesh['tensor']
  grads = result.get('grads', {})
  for path, (shape, shard) in (result['shards'] | grads).items():
    parts = math.prod(shape) // math.prod(shard)
    if 'blocks' in path and path.endswith('kernel'):
      assert parts == both, path
    elif path.endswith(('embedding', 'head/kernel')):
      assert parts == mesh['fsdp'], path
    else:
      assert parts == 1, path
  # Which dim has which axis, in the two kernels of the MLP.
  width, hidden = 32, 128
  a, b = width // mesh['fsdp'], hidden // mesh['tensor']
  for path, (_, shard) in (result['shards'] | grads).items():
    if path.endswith('mlp/in/kernel'):
      assert shard[1:] == [a, b], path
    if path.endswith('mlp/out/kernel'):
      assert shard[1:] == [b, a], path
