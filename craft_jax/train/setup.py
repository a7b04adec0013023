"""An opened run: its parts, its state, and the program of its steps."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Key

from craft_jax.config.settings import Config
from craft_jax.data.corpus import Corpus
from craft_jax.errors import RunFailed, UserError
from craft_jax.model.protocol import Model
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint, metric_table
from craft_jax.runs.checkpoint import Checkpointer, Meta
from craft_jax.runs.lock import Lock
from craft_jax.runs.run_dir import RunDir
from craft_jax.runs.writers import JsonlWriter, SilentWriter
from craft_jax.runtime import distributed, keys
from craft_jax.train.dispatch import Feed, make_run
from craft_jax.train.state import State, Step, abstract_state, init_state
from craft_jax.train.step_metrics import StepMetrics
from craft_jax.types import Params

_INIT_STREAM, _RUN_STREAM = 0, 1  # of the seed


@dataclasses.dataclass(frozen=True)
class Setup:
  """An opened run: what the loop is handed.

  Attributes:
    cfg: its config.
    corpus: what it reads.
    mesh: where it runs.
    model: what it trains.
    optimizer: with what.
    train_step: the pure step of the two.
    step_metrics: turns sums of steps into what is logged.
    from_parent: parameters and, if they are kept, optimizer state of another
      run to start from, for shapes and shardings of a state; or None.
    more_notes: what else a reader should know at the start, a line each.
    start_step: the saved step that it starts from, or None.
    figures: of an evaluation at that step, or {}.
    rows: that `metrics.jsonl` had when that step was saved.
    best_rank: of the best of the saved steps, see `metric_table.rank`; infinite
      without one.
    run_dir: its folder, opened.
    checkpointer: saves it.
    lock: of the folder; None in all but one process.
    open_feed: the batches from a data index on.
    open_writer: of metrics from a step on; warns of what fails.
    closing: closes folder, checkpointer and lock; a context.
  """

  cfg: Config
  corpus: Corpus
  mesh: Mesh
  model: Model
  optimizer: optax.GradientTransformation
  train_step: Step
  step_metrics: StepMetrics
  from_parent: Callable[[State], tuple[Params, Any]] | None
  more_notes: list[str]
  start_step: int | None
  figures: dict[str, Any]
  rows: int
  best_rank: float
  run_dir: RunDir
  checkpointer: Checkpointer
  lock: Lock | None
  open_feed: Callable[[int], Feed]
  open_writer: Callable[
    [int, Callable[[str], None]], JsonlWriter | SilentWriter
  ]
  closing: contextlib.ExitStack

  @property
  def notes(self) -> list[str]:
    """What a reader should know at the start, a line each."""
    last = self.run_dir.how_the_last_ended()
    notes = [self.corpus.summary, *self.corpus.notes, last, *self.more_notes]
    return [note for note in notes if note]

  @property
  def warnings(self) -> list[str]:
    """What a reader should know even of a quiet run, a line each."""
    rounding = self.run_dir.what_rounds_otherwise()
    return [*self.corpus.warnings, *([rounding] if rounding else [])]

  @property
  def platform(self) -> str:
    """JAX's name of the devices of the mesh."""
    return self.mesh.devices.flat[0].platform

  @functools.cached_property
  def run_key(self) -> Key[Array, '']:
    """The key of dropout and augmentation, on the mesh."""
    return jax.jit(
      lambda: jax.random.fold_in(keys.from_seed(self.cfg.seed), _RUN_STREAM),
      out_shardings=mesh_lib.replicated(self.mesh),
    )()

  def meta(self, step: int, figures: dict[str, Any], rows: int) -> Meta:
    """What a checkpoint says beside the arrays.

    Args:
      step: steps done.
      figures: of an evaluation at this very step, or {}.
      rows: of `metrics.jsonl` so far.
    """
    return Meta(
      step=step,
      rows=rows,
      config=self.cfg,
      vocabulary=self.corpus.vocabulary,
      fingerprint=self.corpus.fingerprint,
      metrics={k: v for k, v in figures.items() if isinstance(v, (int, float))},
      withheld=self.corpus.withheld,
      documents=self.corpus.documents > 1,
    )

  def first_state(self) -> State:
    """The state to start from: that of `start_step`, or one before any step.

    All processes. On the mesh, wherever it was saved.

    Raises:
      UserError: the checkpoint is of other settings.
    """
    return self._state_at(self.start_step)

  def inputs(self, feed: Feed, count: int) -> tuple[Any, ...]:
    """What the program of a call takes beside the state, for `count` steps."""
    trips = mesh_lib.put_batch(np.int32(count), mesh_lib.replicated(self.mesh))
    return feed.source(count), self.run_key, trips

  def compile(self, feed: Feed, state: State, inputs: tuple[Any, ...]) -> Any:
    """The program of many steps that a run calls, for its state and inputs."""
    skip = self.cfg.train.bad_step == 'skip'
    run = make_run(self.train_step, feed.fetch, feed.max_steps, skip)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    replicated = mesh_lib.replicated(self.mesh)
    with jax.set_mesh(self.mesh):
      return (
        jax.jit(
          run,
          donate_argnums=0,
          out_shardings=(shardings, replicated, replicated),
        )
        .lower(state, *inputs)
        .compile()
      )

  @functools.cached_property
  def abstract_state(self) -> State:
    """Shapes and shardings of the state, nothing allocated."""
    ema = self.cfg.train.ema > 0
    return abstract_state(self.model, self.optimizer, ema, self.mesh)

  def _state_at(self, step: int | None) -> State:
    abstract = self.abstract_state
    if step is not None:
      return self.checkpointer.restore(abstract, step)[0]
    key = jax.random.fold_in(keys.from_seed(self.cfg.seed), _INIT_STREAM)
    params, opt_state = None, None
    if self.from_parent:
      params, opt_state = self.from_parent(abstract)
    with jax.set_mesh(self.mesh):
      state = jax.jit(
        lambda key, params: init_state(
          self.model, self.optimizer, key, self.cfg.train.ema > 0, params
        ),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
      )(key, params)
    if opt_state is not None:
      state = dataclasses.replace(state, opt_state=opt_state)
    return state

  def rank(self, figures: Mapping[str, Any]) -> float:
    """Orders evaluations by `checkpoint.best`: the least is the best."""
    return metric_table.rank(self.cfg.checkpoint.best, figures)

  def best_rank_now(self) -> float:
    """Rank of the best of the saved steps. All processes."""
    return distributed.told_by_first(lambda: best_rank(self.run_dir.path))

  def mend(self) -> str:
    """Writes anew what others removed of the run directory. All processes.

    Returns:
      What was missing, in a line; '' if nothing was.

    Raises:
      RunFailed: another run, or something else, has taken the folder's place.
    """

    def look() -> list[str]:
      try:
        found = self.run_dir.mend()
        if self.lock:
          self.lock.renew()
        return [found, '']
      except UserError as e:
        return ['', str(e)]

    found, failure = distributed.told_by_first(look)
    if failure:
      raise RunFailed(failure)
    return found

  def gone_back(self, current: State, bad_step: int) -> State:
    """A saved state, to go on with the data after those of a bad step.

    All processes. The data since the save are passed over, and saves after it
    are deleted. Only saves that
    `checkpoint.every` asks for count, not those at an interrupt: the run must
    not depend on where it was interrupted.

    Args:
      current: the state before the bad step.
      bad_step: its number, from 1.
    """
    rollbacks = int(current.rollbacks) + 1
    passed = int(current.data_offset) + bad_step
    every = self.cfg.checkpoint.every
    step = distributed.told_by_first(
      lambda: _last_step(self.run_dir.path, every)
    )
    state = self._state_at(step)
    self.checkpointer.forget_after(step or 0)
    numbers = {
      'data_offset': np.int32(passed - int(state.step)),
      'rollbacks': np.int32(rollbacks),
    }
    where = mesh_lib.replicated(self.mesh)
    return dataclasses.replace(state, **mesh_lib.put_batch(numbers, where))


def best_rank(workdir: epath.PathLike) -> float:
  """Rank of the best of the saved steps; infinite where there is none."""
  metas = checkpoint.readable(workdir)
  best = checkpoint.best_of(metas)
  return math.inf if best is None else checkpoint.rank_in(metas, best)


def _last_step(workdir: epath.PathLike, every: int) -> int | None:
  """The last whole checkpoint of those that are multiples of `every`."""
  if not any(step % every == 0 for step in checkpoint.steps(workdir)):
    return None
  return checkpoint.resolve_step(workdir, every=every)
