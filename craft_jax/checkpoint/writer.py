"""Writes checkpoints in the background and keeps the ones worth keeping."""

import json
import threading
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from craft_jax import files
from craft_jax.checkpoint.meta import Meta, one_line
from craft_jax.checkpoint.reader import (
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
  walk,
)
from craft_jax.errors import UserError

# A full disk reaches us as any of these, by who noticed it first.
_SAVE_ERRORS = (OSError, ValueError, RuntimeError)


class Checkpointer:
  """Saves in the background, keeps the latest few and the best.

  A save is atomic: until Orbax renames the finished folder, readers see the
  steps before it. An older step is deleted only once the new one is
  committed and its files have been read back into `files.json`.
  """

  def __init__(
    self, workdir: epath.PathLike, keep: int = 2, warn: Warn | None = None
  ):
    """Opens `workdir` for writing; removes what a killed save left behind.

    Args:
      workdir: the run directory, local or remote; made if missing.
      keep: latest checkpoints kept, besides the best.
      warn: told of damaged checkpoints; standard error by default.

    Raises:
      UserError: the folder cannot be made or written.
    """
    self.workdir = epath.Path(workdir)
    self._keep = keep
    self._warn = warn or to_stderr
    self._damaged: set[int] = set()
    self._thread: threading.Thread | None = None
    self._failure: BaseException | None = None
    self._step = 0
    folder = folder_of(self.workdir)
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise UserError(f'cannot write to {folder}: {one_line(e)}') from e
    self._manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        # Made in the background, a folder that cannot be made leaves a thread
        # that waits for it for five minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
      ),
    )

  def save(self, state: Any, meta: Meta) -> bool:
    """Starts to save `state` as step `meta.step`; returns once it is copied.

    The arrays may be donated as soon as this returns. Returns False, saving
    nothing, where a whole checkpoint of that step exists.

    Raises:
      UserError: this or the save before it could not be written (disk full,
        read-only folder); the checkpoints before remain.
    """
    self.wait()
    step = meta.step
    if step in self._damaged:
      self._manager.delete(step)
      self._damaged.discard(step)
    elif step in self._manager.all_steps():
      return False
    tree = meta.to_tree()
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          meta=ocp.args.JsonSave(tree),
        ),
        force=True,
      )
    except _SAVE_ERRORS as e:
      self._manager.reload()
      raise self._failed(step, e) from e
    self._step = step
    self._thread = threading.Thread(target=self._verify, args=(step,))
    self._thread.start()
    return True

  def _verify(self, step: int) -> None:
    """In the background: awaits the commit, then reads every file back."""
    try:
      self._manager.wait_until_finished()
      if jax.process_index() == 0:
        path = step_path(self.workdir, step)
        wanted = {
          str(p.relative_to(path)): [p.stat().length, file_sha256(p)]
          for p in walk(path)
        }
        files.write_atomic(path / 'files.json', json.dumps(wanted))
        open_meta(self.workdir, step)
    except Exception as e:  # lost in this thread, it would pass for success
      self._failure = e

  def wait(self) -> None:
    """Waits for the save under way and deletes what need not be kept.

    Raises:
      UserError: that save failed; nothing was deleted for it.
    """
    if self._thread is None:
      return
    self._thread.join()
    self._thread = None
    failure, self._failure = self._failure, None
    if failure is not None:
      self._manager.reload()
      raise self._failed(self._step, failure) from failure
    metas = readable(self.workdir)
    good = [s for s in sorted(metas) if s not in self._damaged]
    kept = {*good[-self._keep :], best_of(metas), *self._damaged}
    for step in good:
      if step not in kept:
        self._manager.delete(step)

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
    path = step_path(self.workdir, step) / 'state'
    check_matches(stored_arrays(path), abstract_state, path.parent)
    return restore_tree(path, abstract_state), meta

  def close(self) -> None:
    """Awaits the last save and ends the background threads."""
    try:
      self.wait()
    finally:
      self._manager.close()

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
    try:
      self.close()
    except UserError as e:
      self._warn(str(e))  # the first error is the one to report
