"""Windows of a corpus too large for the device: the Grain path.

The same numbers as `craft_jax.data.batch.windows_at`, read from the
memory-mapped array by threads ahead of need. A stream holds no state that a
checkpoint must keep: it starts at any data index.
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
  """'device' or 'grain' for this training split.

  'auto' puts up to `data.device_megabytes` on the device.

  Raises:
    UserError: 'device' was asked for a corpus that its 32-bit positions
      cannot address.
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
  """Random access by data index: a Grain data source of window batches.

  Element i is `windows_at(data_index=i)`, or some rows of it, int32
  `[rows, context + 1]`. Its length is the largest that sample numbers allow.
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
    tokens: the training split.
    batch_size: over all processes.
    context: tokens of a window but one.
    order: 'crops' or 'windows'.
    seed: of the run.
    rows: of the batch that are wanted here.
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
  """Consecutive window batches from `start` on, read ahead.

  Attributes:
    data_index: of the batch that `next` gives.
    wait_seconds: time spent in `next` so far, which is what the training loop
      waited for data; reset it by assignment.
  """

  def __init__(
    self, source: WindowSource, start: int = 0, prefetch: int = 4
  ) -> None:
    """Reads up to `prefetch` batches ahead, in up to 4 threads."""
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
    """Stops the threads; the stream gives nothing more."""
    self._batches.close()
