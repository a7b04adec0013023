"""How a run ended, noted in its folder."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from craft_jax.errors import INTERRUPTED, UserError
from craft_jax.runs import layout, parallel_read
from craft_jax.runtime import files
from craft_jax.train import out_of_memory
from craft_jax.train.setup import Setup


@dataclasses.dataclass
class Ending:
  """What is known of a run when it ends.

  Attributes:
    doing: tells what it is at, in a word.
    summary: its figures, once it is done.
  """

  doing: Callable[[], str] = lambda: 'allocating the state'
  summary: dict[str, Any] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def noted(setup: Setup) -> Iterator[Ending]:
  """Writes the status of the run when the block ends, however it does.

  Raises:
    OutOfMemory: in place of an error that says that memory is short.
  """
  ending = Ending()
  run_dir = setup.run_dir
  try:
    yield ending
  except BaseException as e:
    error = _told(e, setup, ending.doing())
    with contextlib.suppress(UserError):  # the first error is to be told
      if isinstance(error, (out_of_memory.OutOfMemory, out_of_memory.TooLarge)):
        run_dir.update(out_of_memory=error.facts)
      run_dir.finish(_status(error), str(error) or type(error).__name__)
    if error is e:
      raise
    raise error from e
  step = ending.summary['step']
  if step == setup.cfg.train.steps:
    run_dir.finish(layout.FINISHED, 'finished')
  else:
    run_dir.finish(layout.STOPPED, f'stopped at step {step}')
  if run_dir.writes and not files.is_remote(run_dir.path):
    parallel_read.keep_large(pathlib.Path(run_dir.path))


def _told(error: BaseException, setup: Setup, doing: str) -> BaseException:
  if not out_of_memory.is_shortage(error):
    return error
  size = setup.corpus.vocabulary.size
  return out_of_memory.explained(
    error, setup.cfg, size, setup.mesh.shape, doing
  )


def _status(error: BaseException) -> str:
  stopped = getattr(error, 'code', None) == INTERRUPTED
  return (
    layout.STOPPED
    if stopped or isinstance(error, KeyboardInterrupt)
    else layout.FAILED
  )
