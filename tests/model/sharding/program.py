"""Compiles and runs the training step on eight CPU devices.

  echo '[{"overrides": ["mesh.data=8"]}, ...]' | python program.py

A process of its own: the devices are set before JAX starts. Prints one JSON
list with an object per case:

  backend      of JAX
  collectives  `[instruction, [[size, ...], ...]]`: the shapes that each yields
  losses       of the steps that were run, in nats
  norms        of their gradients
  averages     the sum of the absolute averaged parameters after them
  batches      sha256 of the batch of each step
  shards       of the arrays of the state: `{path: [shape, shape of a shard]}`
  grads        the same of the gradients, where nothing but the model says it

Without steps, only the first two; the last if asked for.
"""

import contextlib
import hashlib
import json
import re
import sys

import jax

jax.config.update('jax_num_cpu_devices', 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType  # noqa: E402

from craft_jax.config import load as config_lib  # noqa: E402
from craft_jax.data import batch as batch_lib  # noqa: E402
from craft_jax.model.build import build  # noqa: E402
from craft_jax.model.precision import platform_of  # noqa: E402
from craft_jax.model.sharding import mesh as mesh_lib  # noqa: E402
from craft_jax.model.sharding import rules  # noqa: E402
from craft_jax.train.dispatch import make_run  # noqa: E402
from craft_jax.train.optim.optimizers import build_optimizer  # noqa: E402
from craft_jax.train.state import abstract_state, init_state  # noqa: E402
from craft_jax.train.step import make_train_step  # noqa: E402

VOCABULARY_SIZE = 20
RECIPE = batch_lib.Recipe(num_text_tokens=18, bos=18, unk=19)
# Something to learn in few steps, so that losses which agree say something.
TOKENS = (np.arange(5000) ** 2 // 7 % 18).astype(np.uint8)
SETTINGS = (
  'data.path=unread',
  'mesh.cpu_devices=8',
  'model.width=32',
  'model.num_heads=4',
  'model.zero_init=false',
  'model.precision=float32',
  'train.batch_size=16',
  'train.ema=0.9',
  'optim.warmup_steps=5',
  'optim.learning_rate=0.01',
  'eval.batch_size=16',
)

# `%x = f32[2,3]{1,0} all-reduce(`, `%x = (f32[2]{0}, f32[]) all-to-all(`
_COLLECTIVE = re.compile(
  r'= (?P<type>\(.*?\)|\S+) (?P<op>all-reduce|all-gather|reduce-scatter|'
  r'all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)'
  r'(?P<start>-start)?\('
)
_SHAPE = re.compile(r'\b[a-z]+\d*\w*\[([\d,]*)\]')


def collectives(text: str) -> list:
  """Each collective instruction of a compiled program, with its results."""
  found = []
  for match in filter(None, map(_COLLECTIVE.search, text.splitlines())):
    shapes = [
      [int(size) for size in sizes.split(',') if size]
      for sizes in _SHAPE.findall(match['type'])
    ]
    if match['start'] and match['op'] in ('all-gather', 'collective-permute'):
      shapes = shapes[len(shapes) // 2 :]  # what goes in comes first
    found.append([match['op'], shapes])
  return found


def shards(tree) -> dict:
  """Shape, and shape on a device, of each array."""
  return {
    '/'.join(rules.names_of(path)): [
      leaf.shape,
      leaf.addressable_shards[0].data.shape,
    ]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def gradients(model, params, batch):
  """As training takes them, with no sharding asked of the result."""

  def loss(params):
    return jnp.square(model.apply(params, batch.x_BT)).sum()

  return jax.jit(jax.grad(loss))(params)


def case(overrides, steps=0, constrained=True, one_device=False, grads=False):
  """What the page above says of one case.

  Args:
    overrides: of the settings.
    steps: to run.
    constrained: whether the program is traced with the mesh in context.
    one_device: instead of the mesh of the settings.
    grads: whether to compute gradients alone.
  """
  cfg = config_lib.load_config('text', [*SETTINGS, *overrides])
  mesh = _one_device() if one_device else mesh_lib.make_mesh(cfg)
  with jax.set_mesh(mesh) if constrained else contextlib.nullcontext():
    return _case(cfg, mesh, steps, grads)


def _one_device():
  return jax.make_mesh(
    (1, 1, 1),
    mesh_lib.AXES,
    axis_types=(AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )


def _case(cfg, mesh, steps, grads):
  model = build(cfg.model, VOCABULARY_SIZE, platform_of(jax.devices()[0]))
  optimizer = build_optimizer(cfg, model, mesh)
  state = abstract_state(model, optimizer, True, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  replicated = mesh_lib.replicated(mesh)
  fetch = _fetch(cfg, mesh_lib.batch_sharding(mesh))
  tokens, key = inputs = jax.device_put((TOKENS, jax.random.key(1)), replicated)
  count = jax.device_put(np.int32(steps), replicated)
  step = make_train_step(cfg, model, optimizer)
  program = jax.jit(
    make_run(step, fetch, max(steps, 1)),
    donate_argnums=0,
    out_shardings=(shardings, replicated, replicated),
  )
  program = program.lower(state, *inputs, count).compile()
  result = {
    'backend': jax.default_backend(),
    'collectives': collectives(program.as_text()),
  }
  if not steps:
    return result
  state = jax.jit(
    lambda key: init_state(model, optimizer, key, True), out_shardings=shardings
  )(jax.random.key(0))
  numbered = jax.jit(lambda i: fetch(tokens, i, i, key))
  batches = [numbered(jnp.int32(i)) for i in range(steps)]
  if grads:
    result['grads'] = shards(gradients(model, state.params, batches[0]))
  state, rows, _ = program(state, *inputs, count)
  ema = jax.device_get(state.ema)
  return result | {
    'losses': np.asarray(rows['loss'] / rows['count']).tolist(),
    'norms': np.asarray(rows['grad_norm']).tolist(),
    'averages': float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(ema))),
    'batches': [digest(batch) for batch in batches],
    'shards': shards(state),
  }


def _fetch(cfg, sharding):
  """Batches by number, as the training loop makes them."""

  def fetch(source, i, data_index, key):
    del i
    batch = batch_lib.batch_at(
      source,
      key,
      data_index,
      batch_size=cfg.train.batch_size,
      context=cfg.model.context,
      order=cfg.data.order,
      seed=cfg.seed,
      recipe=RECIPE,
    )
    return jax.lax.with_sharding_constraint(batch, sharding)

  return fetch


def digest(batch) -> str:
  """sha256 over all arrays of a batch, wherever their rows are."""
  digest = hashlib.sha256()
  for array in jax.device_get(batch):
    digest.update(f'{array.dtype}{array.shape}'.encode() + array.tobytes())
  return digest.hexdigest()


if __name__ == '__main__':
  print(json.dumps([case(**arguments) for arguments in json.load(sys.stdin)]))
