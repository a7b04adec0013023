"""The device mesh. There always is one: a laptop is a pod of its CPU cores."""

import contextlib
import math
import os
import pathlib
import time

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.model.sharding import rules
from craft_jax.runtime import distributed

AXES = rules.AXES
_LOOK_SECONDS = 5e-4  # polling interval while waiting for devices
BATCH = rules.activation_spec('B')  # the batch dim over two axes


def usable_cores() -> int:
  """CPU cores this process may use, by its affinity and cgroup quota."""
  try:
    cores = len(os.sched_getaffinity(0))
  except AttributeError:  # not on macOS or Windows
    cores = os.cpu_count() or 1
  return max(1, min(cores, _cgroup_cores()))


def _cgroup_cores() -> int:
  """Cores that the cgroup quota allows; a large number without a quota."""
  unlimited = 1 << 16
  try:
    quota, period = (
      pathlib.Path('/sys/fs/cgroup/cpu.max').read_text().split()[:2]
    )
  except (OSError, ValueError):
    return unlimited
  return unlimited if quota == 'max' else math.ceil(int(quota) / int(period))


def cpu_devices(cfg: Config) -> int:
  """Number of CPU devices for this process.

  `mesh.cpu_devices` if set. Otherwise one if the run has several processes,
  else the largest number of usable cores that divides the batch sizes.

  Args:
    cfg: run settings; `mesh`, the batch sizes and `train.accumulate` are read.
  """
  if cfg.mesh.cpu_devices:
    return cfg.mesh.cpu_devices
  if jax.distributed.is_initialized():
    return 1
  axes = (cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.tensor)
  fixed = math.prod(size for size in axes if size > 0)
  if -1 not in axes:
    return fixed
  fixed_batch = math.prod(size for size in axes[:2] if size > 0)
  micro = cfg.train.batch_size // cfg.train.accumulate
  for rest in range(max(usable_cores() // fixed, 1), 1, -1):
    shards = fixed_batch * (rest if -1 in axes[:2] else 1)
    if micro % shards == 0 and cfg.eval.batch_size % shards == 0:
      return fixed * rest
  return fixed


def make_mesh(cfg: Config) -> Mesh:
  """Makes the mesh of a run over all its devices.

  First sets the number of CPU devices, which must happen before JAX initializes
  a backend and has no effect with an accelerator.

  Raises:
    UserError: the mesh axes or batch sizes do not divide over the devices.
  """
  set_cpu_devices(cpu_devices(cfg))
  sizes = config_lib.check_devices(cfg, jax.device_count())
  return jax.make_mesh(
    tuple(sizes[name] for name in AXES),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def data_mesh(batch_size: int) -> Mesh:
  """A mesh for evaluation: as many devices on `data` as divide the batch."""
  if jax.distributed.is_initialized():
    set_cpu_devices(1)
  else:
    set_cpu_devices(math.gcd(usable_cores(), batch_size))
  count = math.gcd(jax.device_count(), batch_size)
  if distributed.several() and count < jax.device_count():
    raise UserError(
      f'eval.batch_size={batch_size} does not divide over {jax.device_count()} '
      'devices; use fewer processes'
    )
  return jax.make_mesh(
    (count, 1, 1),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def set_cpu_devices(count: int) -> None:
  """Sets the number of CPU devices, unless JAX is already initialized."""
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', count)


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding that replicates an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of the first dim over the mesh axes `data` and `fsdp`."""
  return NamedSharding(mesh, BATCH)


def put_batch(batch, sharding: NamedSharding):
  """Puts a tree of global NumPy arrays on the devices with this sharding."""
  return jax.tree.map(
    lambda array: jax.make_array_from_callback(
      np.shape(array), sharding, lambda index: np.asarray(array)[index]
    ),
    batch,
  )


def fetched(tree):
  """Fetches a tree of arrays to the host and raises the first device's error.

  Polls all devices, because one that fails, for example out of memory, leaves
  the others blocked in a collective: waiting for them in order may never end.
  """
  if jax.local_device_count() > 1:
    waiting = [
      shard.data
      for leaf in jax.tree.leaves(tree)
      for shard in leaf.addressable_shards
    ]
    while waiting:
      jax.block_until_ready([part for part in waiting if part.is_ready()])
      waiting = [part for part in waiting if not part.is_ready()]
      if waiting:
        time.sleep(_LOOK_SECONDS)
  return jax.device_get(tree)


def whole_on_first(tree):
  """Gathers a tree of arrays in process 0; returns None in other processes.

  All processes must call it. Arrays are gathered one by one to save memory.
  """
  if not distributed.several():
    return tree
  device = jax.local_devices()[0]

  def whole(leaf):
    if not leaf.is_fully_replicated:
      everywhere = replicated(leaf.sharding.mesh)
      leaf = jax.jit(lambda x: x, out_shardings=everywhere)(leaf)
    local = np.asarray(leaf.addressable_data(0))
    return jax.device_put(local, device) if distributed.is_first() else None

  tree = jax.tree.map(whole, tree)
  return tree if distributed.is_first() else None
