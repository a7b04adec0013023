"""Reading the rows of many runs for the first time: on all cores, with a bar.

What is read is kept beside the rows (`digest`, `columns`), so that it is read
once. A run that ends keeps it at once, so that no reader waits for it.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Iterable

from craft_jax.runs import columns, digest
from craft_jax.runs.layout import METRICS
from craft_jax.runtime.terminal import drawing

_SOON = 100e6  # bytes that take about a second: no processes, no bar
_WORTH = 1 << 20  # bytes of rows that are worth keeping as columns


def read(paths: Iterable[pathlib.Path], rows: bool) -> None:
  """Reads what is not kept yet, if it is much; little is read when needed.

  Args:
    paths: of run directories.
    rows: all columns, not only what a list shows.
  """
  unread = {p: _unread(p, rows) for p in paths if os.access(p, os.W_OK)}
  unread = {path: size for path, size in unread.items() if size}
  if not unread or sum(unread.values()) < _SOON:
    return
  import rich.console
  import rich.progress

  # Fresh processes: threads would wait for each other, and what this process
  # has begun (JAX, say) is not to be forked.
  context = multiprocessing.get_context('spawn')
  with (
    concurrent.futures.ProcessPoolExecutor(
      min(os.cpu_count() or 1, len(unread)), context
    ) as pool,
    rich.progress.Progress(
      rich.progress.TextColumn('reading runs'),
      rich.progress.BarColumn(),
      rich.progress.DownloadColumn(),
      rich.progress.TimeRemainingColumn(),
      console=rich.console.Console(file=drawing(sys.stderr)),
      transient=True,
      disable=not sys.stderr.isatty(),
    ) as bar,
  ):
    task = bar.add_task('', total=sum(unread.values()))
    # The largest first, so that no core waits for the last one.
    order = sorted(unread, key=lambda path: -unread[path])
    todo = {pool.submit(keep, path, rows): path for path in order}
    for done in concurrent.futures.as_completed(todo):
      bar.advance(task, unread[todo[done]])


def keep(path: pathlib.Path, rows: bool = True) -> None:
  """Keeps what the rows of a run come to; what is wrong shows elsewhere."""
  with contextlib.suppress(Exception):
    digest.read(path)
    if rows:
      columns.read(path, columns.TRAIN, ())


def keep_large(path: pathlib.Path) -> None:
  """`keep` of a run that has ended, if its rows are many."""
  with contextlib.suppress(OSError):
    if (path / METRICS).stat().st_size >= _WORTH:
      keep(path)


def _unread(path: pathlib.Path, rows: bool) -> int:
  """Bytes of rows that nothing is kept of."""
  try:
    size = (path / METRICS).stat().st_size
  except OSError:
    return 0
  kept = columns.offset(path) if rows else digest.offset(path)
  return max(size - kept, 0)
