"""Windows of a corpus that is too large for the device, by Grain.

Threads prefetch the windows of `craft_jax.data.batch.numpy_windows_at` from a
memory-mapped array. A stream can start at any data index, so that checkpoints
need no iterator state.
"""

import time
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from craft_jax.config.settings import Config
from craft_jax.data import batch, index
from craft_jax.errors import UserError

_MEGABYTE = 10**6


def placement(cfg: Config, tokens: np.ndarray) -> str:
  """Resolves `data.placement` to 'device' or 'grain' for a training split.

  'auto' puts up to `data.device_megabytes` on the device.

  Raises:
    UserError: 'device' is set, but the corpus has 2**31 tokens or more.
  """
  if cfg.data.placement == 'grain':
    return 'grain'
  if cfg.data.placement == 'device':
    if len(tokens) >= 2**31:
      raise UserError(
        f'data.placement=device cannot address {len(tokens):,} tokens (at '
        f'most {2**31 - 1:,}); use data.placement=grain'
      )
    return 'device'
  limit = cfg.data.device_megabytes * _MEGABYTE
  fits = tokens.nbytes <= limit and len(tokens) < 2**31
  return 'device' if fits else 'grain'


class WindowSource:
  """Grain data source of window batches with random access by data index.

  Element i holds the wanted rows of batch i, int32 `[rows, context + 1]`. The
  length is the largest that 32-bit sample numbers allow.
  """

  def __init__(
    self,
    tokens: np.ndarray,
    *,
    batch_size: int,
    context: int,
    order: str,
    seed: int,
    rows: slice = batch.ALL,
  ) -> None:
    """Args:
    tokens: the training split, 1-D uint8 or uint16.
    batch_size: global batch size.
    context: targets per window, which holds one token more.
    order: 'crops' (any offset) or 'windows' (multiples of `context`).
    seed: seed of the run.
    rows: rows of the global batch that this process needs.
    """
    self._tokens = tokens
    self._rows = rows
    self._plan: dict[str, Any] = {
      'batch_size': batch_size,
      'context': context,
      'order': order,
      'seed': seed,
    }

  def __len__(self) -> int:
    return (index.LIMIT - 1) // self._plan['batch_size']

  def __getitem__(self, data_index: Any) -> np.ndarray:
    return batch.numpy_windows_at(
      self._tokens, int(data_index), rows=self._rows, **self._plan
    )


class WindowStream(Iterator[np.ndarray]):
  """Iterator over window batches from `start` on, with prefetching.

  Attributes:
    data_index: number of the batch that `next` returns.
    wait_seconds: time that the training loop has waited for data in `next`;
      reset it by assignment.
  """

  def __init__(
    self, source: WindowSource, start: int = 0, prefetch: int = 4
  ) -> None:
    """Starts prefetching up to `prefetch` batches, in up to 4 threads."""
    self.data_index = start
    self.wait_seconds = 0.0
    options = grain.ReadOptions(
      num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch
    )
    dataset = grain.MapDataset.source(source).slice(slice(start, None))
    self._batches = iter(dataset.to_iter_dataset(options))

  def __next__(self) -> np.ndarray:
    begin = time.perf_counter()
    window_BS = next(self._batches)
    self.wait_seconds += time.perf_counter() - begin
    self.data_index += 1
    return window_BS

  def close(self) -> None:
    """Stops the threads and ends the stream."""
    self._batches.close()
