"""A save that is killed, and a state that moves to other devices.

The other process imports this module too, for the same states.
"""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from craft_jax.config.settings import Config
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.runs import checkpoint

_ROOT = pathlib.Path(checkpoint.__file__).parents[3]


def make_state(step=0):
  w = jax.random.normal(jax.random.key(step), (6, 4))
  params = {'embed': {'embedding': w}}
  opt_state = {'mu': {'embed': {'embedding': w + 1}}, 'count': jnp.int32(step)}
  return {'step': jnp.int32(step), 'params': params, 'opt_state': opt_state}


def make_meta(step):
  return checkpoint.Meta(step, Config(), Vocabulary.byte(), 'print')


def abstract(state):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state
  )


@pytest.fixture
def workdir(tmp_path):
  """Steps 1 and 2."""
  with checkpoint.Checkpointer(tmp_path) as saver:
    for step in (1, 2):
      saver.save(make_state(step), make_meta(step))
  return tmp_path


_PRELUDE = """
import os, sys
import jax
jax.config.update('jax_num_cpu_devices', {devices})
sys.path[:0] = [{root!r}, {here!r}]
import jax.numpy as jnp
from craft_jax.runs import checkpoint
import test_kill as t
"""


def python(code: str, devices: int = 1) -> subprocess.Popen:
  here = str(pathlib.Path(__file__).parent)
  prelude = _PRELUDE.format(devices=devices, root=str(_ROOT), here=here)
  return subprocess.Popen(
    [sys.executable, '-c', prelude + textwrap.dedent(code)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


@pytest.mark.slow
def test_restore_on_other_device_counts(workdir):
  """2 devices read what 1 wrote, and the other way round; nothing is said."""
  code = """
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
  mesh = jax.make_mesh((2,), ('x',))
  split = lambda x: NamedSharding(mesh, P('x') if x.ndim == 2 else P())
  want = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split(x)),
    t.make_state())
  with checkpoint.Checkpointer({work!r}) as saver:
    state, _ = saver.restore(want)
    kernel = state['params']['embed']['embedding']
    assert len(kernel.sharding.device_set) == 2, kernel.sharding
    assert kernel.addressable_shards[0].data.shape == (3, 4)
    saver.save(state, t.make_meta(8))
  print(checkpoint.tree_sha256(state))
  """
  run = python(code.format(work=str(workdir)), devices=2)
  out, err = run.communicate(timeout=120)
  assert run.returncode == 0, err
  assert err == ''
  want = checkpoint.tree_sha256(make_state(2))
  assert out.strip() == want
  with checkpoint.Checkpointer(workdir) as saver:
    state, meta = saver.restore(abstract(make_state()))
  assert meta.step == 8
  assert checkpoint.tree_sha256(state) == want


@pytest.mark.slow
@pytest.mark.parametrize('point', ['write', 'commit', 'manifest'])
def test_kill_in_the_middle_of_a_save(workdir, point):
  """SIGKILL in a save: the steps before are whole, the rest is cleared."""
  code = """
  import signal, threading
  from craft_jax.runtime import files
  from etils import epath
  die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
  point = {point!r}
  if point == 'manifest':
    files.write_atomic = die
  elif point == 'commit':
    # The last act of a save is a rename without the temporary suffix.
    from orbax.checkpoint._src.path import atomicity
    atomicity.AtomicRenameTemporaryPath.finalize = die
  state = t.make_state(3) | {{'params': {{'w': jnp.ones((8, 1024, 1024))}}}}
  saver = checkpoint.Checkpointer({work!r})
  saver.save(state, t.make_meta(3))
  if point == 'write':
    while True:
      tree = [f for _, _, fs in os.walk({work!r} + '/checkpoints') for f in fs]
      if any('tmp' in d for d in os.listdir({work!r} + '/checkpoints')):
        die()
  saver.wait()
  print('survived')
  """
  run = python(code.format(work=str(workdir), point=point))
  out, err = run.communicate(timeout=120)
  assert run.returncode == -signal.SIGKILL, (out, err)
  left = {p.name for p in (workdir / 'checkpoints').iterdir()}
  whole = [1, 2, 3] if point == 'manifest' else [1, 2]
  assert checkpoint.steps(workdir) == whole
  if point != 'manifest':
    assert any('tmp' in name for name in left), left
  assert checkpoint.find_damage(workdir, 2) == ''
  assert checkpoint.resolve_step(workdir) == whole[-1]
  if point == 'manifest':
    return
  with checkpoint.Checkpointer(workdir) as saver:
    back, meta = saver.restore(abstract(make_state()))
    assert meta.step == 2
    want = checkpoint.tree_sha256(make_state(2))
    assert checkpoint.tree_sha256(back) == want
    assert saver.save(make_state(3), make_meta(3))
  left = {p.name for p in (workdir / 'checkpoints').iterdir()}
  assert left == {'2', '3'}  # the latest two; nothing temporary
