"""Feeds of identical batches, from device memory or streamed by Grain."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from craft_jax.config.settings import Config
from craft_jax.data import batch as batch_lib
from craft_jax.data import grain_batches
from craft_jax.data.corpus import Corpus
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.train.dispatch import Feed

_CHUNK_BYTES = 16 << 20  # limit on windows streamed per dispatch
_DEVICE_STEPS, _STREAM_STEPS = 512, 64


def open_feed(cfg: Config, corpus: Corpus, mesh: Mesh, data_index: int) -> Feed:
  """Opens the feed chosen by `data.placement`, starting at `data_index`."""
  if grain_batches.placement(cfg, corpus.train.tokens) == 'device':
    return _DeviceFeed(cfg, corpus, mesh)
  return _StreamFeed(cfg, corpus, mesh, data_index)


def _plan(cfg: Config) -> dict[str, Any]:
  return {
    'batch_size': cfg.train.batch_size,
    'context': cfg.model.context,
    'order': cfg.data.order,
    'seed': cfg.seed,
  }


class _DeviceFeed:
  """Feed whose corpus is on the devices, without transfers from the host."""

  wait_seconds = 0.0

  def __init__(self, cfg: Config, corpus: Corpus, mesh: Mesh):
    self.max_steps = cfg.train.steps_per_call or _DEVICE_STEPS
    self._plan = _plan(cfg)
    self._recipe = batch_lib.recipe_of(cfg, corpus.vocabulary)
    self._sharding = mesh_lib.batch_sharding(mesh)
    self._tokens = mesh_lib.put_batch(
      corpus.train.tokens, mesh_lib.replicated(mesh)
    )

  def source(self, num_steps: int) -> jax.Array:
    del num_steps
    return self._tokens

  def fetch(self, source, i, data_index, key):
    del i
    batch = batch_lib.batch_at(
      source, key, data_index, **self._plan, recipe=self._recipe
    )
    return jax.lax.with_sharding_constraint(batch, self._sharding)

  def close(self) -> None:
    pass


class _StreamFeed:
  """Feed that prefetches windows by Grain, in chunks of a fixed shape."""

  def __init__(self, cfg: Config, corpus: Corpus, mesh: Mesh, data_index: int):
    plan = _plan(cfg)
    window_bytes = 4 * plan['batch_size'] * (plan['context'] + 1)
    self.max_steps = cfg.train.steps_per_call or max(
      1, min(_STREAM_STEPS, _CHUNK_BYTES // window_bytes)
    )
    self._recipe = batch_lib.recipe_of(cfg, corpus.vocabulary)
    self._sharding = NamedSharding(mesh, PartitionSpec(None, *mesh_lib.BATCH))
    self._shape = (self.max_steps, plan['batch_size'], plan['context'] + 1)
    self._rows = _rows_here(self._sharding, self._shape)
    self._stream = grain_batches.WindowStream(
      grain_batches.WindowSource(corpus.train.tokens, **plan, rows=self._rows),
      data_index,
      cfg.data.prefetch,
    )

  @property
  def wait_seconds(self) -> float:
    return self._stream.wait_seconds

  def source(self, num_steps: int) -> jax.Array:
    windows = [next(self._stream) for _ in range(num_steps)]
    windows += [np.zeros_like(windows[0])] * (self.max_steps - num_steps)
    local, first = np.stack(windows), self._rows.start

    def shard(index):
      start, stop, _ = index[1].indices(self._shape[1])
      return local[:, start - first : stop - first]

    return jax.make_array_from_callback(self._shape, self._sharding, shard)

  def fetch(self, source, i, data_index, key):
    window_BS = jnp.take(source, i, axis=0)
    key = jax.random.fold_in(key, data_index)  # to equal `batch_at`
    return batch_lib.to_batch(window_BS, key, self._recipe)

  def close(self) -> None:
    self._stream.close()


def _rows_here(sharding: NamedSharding, shape: tuple[int, ...]) -> slice:
  """Range of rows (dim 1) that the devices of this process hold."""
  indices = sharding.addressable_devices_indices_map(shape).values()
  rows = [index[1].indices(shape[1])[:2] for index in indices if index]
  return slice(min(start for start, _ in rows), max(stop for _, stop in rows))
