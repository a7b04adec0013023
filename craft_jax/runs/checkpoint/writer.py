"""Writes checkpoints in the background and keeps the ones worth keeping."""

import contextlib
import logging as py_logging
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from craft_jax.errors import UserError, one_line
from craft_jax.runs.checkpoint import retention, staging
from craft_jax.runs.checkpoint.meta import Meta
from craft_jax.runs.checkpoint.reader import (
  METRICS,
  Warn,
  best_of,
  check_matches,
  file_sha256,
  folder_of,
  open_meta,
  readable,
  resolve_step,
  restore_tree,
  step_path,
  steps,
  stored_arrays,
  to_stderr,
)
from craft_jax.runs.checkpoint.staging import FILES, walk
from craft_jax.runtime import distributed, files, object_stores, strict_json

_UNFINISHED = '.orbax-checkpoint-tmp'  # in the names of Orbax's own, too
_SHARED_WRITE_BYTES = 1 << 24  # from here on replicas write a slice each
# A full disk reaches us as any of these, by who noticed it first.
_SAVE_ERRORS = (OSError, ValueError, RuntimeError)


def quiet() -> None:
  """Stops Orbax and TensorStore from printing failures they also raise.

  Orbax logs a traceback of each. TensorStore reports the end of every write to
  Orbax's event loop, which the first failed write has closed by then, and
  prints a traceback of each report that fails. asyncio and Python tell of the
  writes that nobody waited for or began.
  """
  logging.set_verbosity(logging.FATAL)
  py_logging.getLogger('asyncio').setLevel(py_logging.CRITICAL)
  warnings.filterwarnings(
    'ignore', 'coroutine .* was never awaited', RuntimeWarning
  )
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)

  sys.unraisablehook = hook


class Checkpointer:
  """Saves in the background, keeps the latest few and the best.

  A save is atomic: until Orbax renames the finished folder, readers see the
  steps before it. An older step is deleted only once the new one is
  committed and its files have been read back into `files.json`. In a run of
  several processes all of them call every method; all write their part, the
  first one deletes.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    keep: int = 2,
    every: int = 0,
    warn: Warn | None = None,
  ):
    """Opens `workdir` for writing; removes what a killed save left behind.

    Args:
      workdir: the run directory, local or remote; made if missing.
      keep: latest checkpoints kept, besides the best.
      every: the latest multiple of this is kept too; 0 is none.
      warn: told of damaged checkpoints; standard error by default.

    Raises:
      UserError: the folder cannot be made or written.
    """
    self.workdir = epath.Path(workdir)
    self._keep, self._every = keep, every
    self._warn = warn or to_stderr
    self._damaged: set[int] = set()
    self._thread: threading.Thread | None = None
    self._failure: BaseException | None = None
    self._step = 0
    distributed.opened_by_all(self._prepare)
    self._orbax = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        state=_array_handler(), meta=ocp.JsonCheckpointHandler()
      ),
      # Made in the background, a folder that cannot be made leaves a thread
      # that waits for it for five minutes.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )

  def _prepare(self) -> None:
    if not distributed.is_first():
      return
    folder = folder_of(self.workdir)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      _clear(folder)
    except OSError as e:
      raise UserError(f'cannot write to {folder}: {one_line(e)}') from e

  def save(self, state: Any, meta: Meta) -> bool:
    """Starts to save `state` as step `meta.step`; returns once it is copied.

    The arrays may be donated as soon as this returns. Returns False where a
    whole checkpoint of that step exists; then only metrics that it lacks are
    added.

    Raises:
      UserError: this or the save before it could not be written (disk full,
        read-only folder); the checkpoints before remain.
    """
    self.wait()
    step = meta.step
    there = step in steps(self.workdir)
    # Another host may see another folder: process 0 decides.
    if distributed.of_first(int(there and step not in self._damaged)):
      if meta.metrics:
        self._together(step, lambda: self._add_metrics(meta))
      return False
    self._together(step, lambda: self._make_room(step, state))
    path = step_path(self.workdir, step)
    staged = staging.is_staged(path)
    place = staging.place_to_save(step) if staged else path
    self._together(
      step,
      lambda: self._orbax.save(
        place,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          meta=ocp.args.JsonSave(meta.to_tree()),
        ),
      ),
    )
    self._damaged.discard(step)
    self._step = step
    saved = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state
    )
    self._thread = threading.Thread(
      target=self._verify, args=(step, saved, place)
    )
    self._thread.start()
    return True

  def _together(self, step: int, function: Callable[[], Any]) -> None:
    """A part of saving a step; where one process fails, all of them do."""
    failure: BaseException | None = None
    try:
      with object_stores.failing_as_os_errors():
        function()
    except _SAVE_ERRORS as e:
      failure = e
    self._agree(step, failure)

  def _agree(self, step: int, failure: BaseException | None) -> None:
    """Raises in all processes where one of them failed to save."""
    others = distributed.failed_elsewhere(failure is not None)
    if failure is None and others:
      failure = OSError(f'process {others[0]} could not write its part')
    if failure is not None:
      raise self._failed(step, failure) from failure

  def _make_room(self, step: int, state: Any) -> None:
    """Process 0 removes what is in the way of a step, and looks for space."""
    if not distributed.is_first():
      return
    folder_of(self.workdir).mkdir(parents=True, exist_ok=True)
    if step in steps(self.workdir):
      _delete(step_path(self.workdir, step))
    if missing := self._missing_bytes(state):
      raise OSError(f'{missing / 1e6:,.1f} MB more are needed on the disk')

  def _missing_bytes(self, state: Any) -> int:
    """What the disk lacks for another save; 0 where it has room.

    A save that fails half way is atomic too, but slow and full of words.
    """
    if staging.is_staged(self.workdir):
      free = staging.room()
    elif files.is_remote(self.workdir):
      return 0
    else:
      free = shutil.disk_usage(folder_of(self.workdir)).free
    need = int(1.05 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    return max(0, need - free)

  def _add_metrics(self, meta: Meta) -> None:
    if not distributed.is_first():
      return
    path = step_path(self.workdir, meta.step)
    if not open_meta(self.workdir, meta.step).metrics:
      tree = meta.to_tree()['metrics']
      files.write_atomic(path / METRICS, strict_json.dumps(tree))

  def _verify(self, step: int, saved: Any, place: epath.Path) -> None:
    """In the background: awaits the commit, then reads every file back.

    From `place` the step is sent to a store that Orbax does not write to.

    The arrays are opened as a reader would: files may all be there and yet not
    be found as arrays.
    """
    try:
      self._orbax.wait_until_finished()
      if distributed.is_first():
        path = step_path(self.workdir, step)
        check_matches(stored_arrays(place / 'state'), saved, path)
        wanted = _sums(place)
        if place != path:
          staging.send(place, path)
          if _sums(path) != wanted:
            raise OSError('other files came back than were sent')
        open_meta(self.workdir, step)
        files.write_atomic(path / FILES, strict_json.dumps(wanted))
    except Exception as e:  # lost in this thread, it would pass for success
      self._failure = e

  def wait(self) -> None:
    """Waits for the save under way and deletes what need not be kept.

    Raises:
      UserError: that save failed, here or in another process; nothing was
        deleted for it.
    """
    if self._thread is None:
      return
    self._thread.join()
    self._thread = None
    failure, self._failure = self._failure, None
    try:
      self._agree(self._step, failure)
    except UserError:
      # Not whole, and so not to be taken for it: the next save is anew.
      self._damaged |= {self._step} & set(steps(self.workdir))
      if distributed.is_first():
        with contextlib.suppress(OSError):  # it fills a full disk
          _clear(folder_of(self.workdir))
      raise
    if not distributed.is_first():
      return
    metas = readable(self.workdir)
    good = [s for s in sorted(metas) if s not in self._damaged]
    best = best_of({step: metas[step] for step in good})
    kept = retention.kept(good, best, self._keep, self._every)
    for step in good:
      if step not in kept:
        _delete(step_path(self.workdir, step))

  def _failed(self, step: int, error: BaseException) -> UserError:
    return UserError(
      f'could not save step {step} in {self.workdir} ({one_line(error)}); free '
      'space or mend the folder, then run the same command to resume'
    )

  def restore(
    self, abstract_state: Any, step: int | None = None
  ) -> tuple[Any, Meta]:
    """The whole state, bit for bit, laid out as `abstract_state` says.

    Steps after the restored one count as damaged and are saved anew.

    Args:
      abstract_state: `ShapeDtypeStruct` tree with shardings, of any mesh.
      step: what `resolve_step` gave; by default the latest whole one.

    Raises:
      UserError: see `resolve_step`; or an array differs from the settings.
    """
    self.wait()
    if step is None:
      step = resolve_step(self.workdir, 'latest', self._warn)
    self._damaged = {s for s in steps(self.workdir) if s > step}
    meta = open_meta(self.workdir, step)
    path = staging.local(step_path(self.workdir, step)) / 'state'
    check_matches(stored_arrays(path), abstract_state, path.parent)
    return restore_tree(path, abstract_state), meta

  def forget_after(self, step: int) -> None:
    """Deletes the steps past `step`, to which a run has gone back.

    They belong to a course that it has left: one of them could be the best,
    or be what the run would resume from. All processes.

    Raises:
      UserError: one cannot be deleted.
    """
    self.wait()

    def forget() -> None:
      for later in steps(self.workdir) if distributed.is_first() else ():
        if later > step:
          _delete(step_path(self.workdir, later))

    self._together(step, forget)
    self._damaged = set()

  def close(self) -> None:
    """Awaits the last save and ends the background threads. Repeatable."""
    try:
      self.wait()
    finally:
      try:
        self._orbax.close()
      except _SAVE_ERRORS as e:
        raise self._failed(self._step, e) from e

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if error is None:
      self.close()
      return
    if distributed.several():
      return  # the others may be gone; the program ends without them
    try:
      self.close()
    except UserError as e:
      self._warn(str(e))  # the first error is the one to report


def _array_handler() -> ocp.PyTreeCheckpointHandler:
  """Writes arrays at the least cost to the steps beside it.

  By default Orbax has the replicas of an array write a slice each, which for a
  small one costs more than it saves, compresses, which makes parameters 8 %
  smaller, and writes the shardings, which are always given when restoring.
  """
  arrays = ocp.type_handlers.ArrayHandler(
    min_slice_bytes_for_replica_parallel=_SHARED_WRITE_BYTES,
    enable_write_sharding_file=False,
  )
  return ocp.PyTreeCheckpointHandler(
    use_compression=False,
    type_handler_registry=ocp.type_handlers.create_type_handler_registry(
      (jax.Array, arrays)
    ),
  )


def _sums(folder: epath.Path) -> dict[str, list[Any]]:
  """Size and sha256 of the files in a folder."""
  return {
    str(file.relative_to(folder)): [file.stat().length, file_sha256(file)]
    for file in walk(folder)
  }


def _clear(folder: epath.Path) -> None:
  """Removes what saves and deletions left half done."""
  if not folder.is_dir():  # an object store has no empty folders
    return
  staged = staging.is_staged(folder)
  whole = {str(step) for step in steps(folder.parent)} if staged else set()
  for path in folder.iterdir():
    if _UNFINISHED in path.name or (staged and path.name not in whole):
      path.rmtree()


def _delete(path: epath.Path) -> None:
  """Removes a step; a kill in between leaves what the next start removes."""
  if staging.is_staged(path):
    staging.delete(path)
    return
  if not files.is_remote(path):
    path = path.rename(path.with_name(f'{path.name}{_UNFINISHED}-deleted'))
  path.rmtree()
