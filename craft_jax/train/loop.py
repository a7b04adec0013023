"""The training loop: dispatch, fetch earlier metrics, evaluate, save."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from craft_jax.data.corpus import Split
from craft_jax.errors import INTERRUPTED, RunFailed, UserError
from craft_jax.model.protocol import param_count
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint, layout
from craft_jax.runs.progress import Progress
from craft_jax.runtime import distributed
from craft_jax.runtime.signals import Interrupts
from craft_jax.train import out_of_memory
from craft_jax.train.bad_steps import BadStep, bad_steps
from craft_jax.train.setup import Setup
from craft_jax.train.step_metrics import Clock, Pace, memory_bytes
from craft_jax.types import Params


class _Stopped(Exception):
  """A signal ended an evaluation or a compilation."""


class Evaluate(Protocol):
  """Evaluates parameters on a split."""

  def compile(self, params: Params) -> bool:
    """Compiles the program if that has not been done; returns True."""

  def __call__(
    self,
    params: Params,
    split: Split,
    withheld: str = '',
    *,
    task_rows: int | None,
    tick: Callable[[], Any],
  ) -> dict[str, Any]:
    """Returns the metrics of a split by name.

    Args:
      params: parameters, sharded over the mesh.
      split: the split to evaluate.
      withheld: reason why bits per byte cannot be reported, or ''.
      task_rows: prompts of pairs to complete, at most; None is all.
      tick: called after each batch.
    """


class Loop:
  """The training loop and its state on the host."""

  def __init__(
    self,
    setup: Setup,
    evaluate: Evaluate,
    draw_sample: Callable[[Params], str | None],
    quiet: bool,
    interrupts: Interrupts,
  ):
    """Allocates the training state and opens feed and metric writer.

    Args:
      setup: the opened run.
      evaluate: evaluates the validation split.
      draw_sample: returns a sample, or None if none is wanted.
      quiet: whether to hide progress.
      interrupts: entered context of signal handlers.
    """
    cfg = setup.cfg
    self.evaluate, self.draw_sample = evaluate, draw_sample
    self.setup, self.cfg, self.interrupts = setup, cfg, interrupts
    self.state = setup.first_state()
    self.step = int(self.state.step)
    self.end = cfg.train.stop_at_step or cfg.train.steps
    self.best_rank = setup.best_rank
    self.val_metrics = setup.figures  # evaluation of this step, or {}
    self.program: Any = None
    self.compile_seconds = 0.0
    self.skips_in_row = 0
    self.metrics = setup.step_metrics
    self.progress = Progress(
      cfg.train.steps,
      step=self.step,
      quiet=quiet or not distributed.is_first(),
    )
    setup.run_dir.update(
      params=param_count(self.state.params), **self.metrics.units
    )
    self._open_at_step()
    self.clock = Clock(self.writer.last_seconds)
    self.pace = Pace(cfg.train.steps_per_call, self.feed.max_steps)
    interrupts.defer(
      distributed.stop_agreement() if distributed.several() else None
    )

  def _open_at_step(self) -> None:
    """Opens the feed and the metric writer at the current step."""
    data_index = self.step + int(self.state.data_offset)
    self.feed = self.setup.open_feed(data_index)
    self.writer = self.setup.open_writer(self.step, self.progress.warn)

  def run(self) -> dict[str, Any]:
    """Trains until the last step, saves, and returns the summary."""
    try:
      with self.progress:
        for line in self.setup.notes:
          self.progress.message(line)
        for line in (*self.setup.warnings, *self._lost_rows()):
          self.progress.warn(line)
        try:
          return self._run()
        except _Stopped:
          self._save_for_good()
          raise RunFailed(
            f'interrupted; step {self.step} is saved, run the same command to '
            'continue',
            INTERRUPTED,
          ) from None
    finally:
      self.feed.close()
      self.writer.close()

  def _lost_rows(self) -> Iterator[str]:
    """Yields a warning if rows are missing that were saved with this step."""
    # Rows written for this step after the save may hide lost ones in the count,
    # so that damaged rows are counted as well.
    lost = max(self.setup.rows - self.writer.count, self.writer.cut)
    if distributed.is_first() and lost > 0:
      yield (
        f'{self.setup.run_dir.path / layout.METRICS} lacks {lost} row(s) '
        f'that it had when step {self.step} was saved; the model is not '
        'affected, but its curves have a gap'
      )

  def _run(self) -> dict[str, Any]:
    if 0 < self.step < self.end:
      self._at_boundary()  # finishes what a kill may have cut short
    while self.step < self.end:
      try:
        self._train()
      except BadStep as bad:
        self._after(bad)
    evaluation = self._evaluate()
    self._save_for_good()
    summary = self._summary(evaluation) | self._sample()
    # A finished run that is started again does not repeat its summary.
    if self.pace.done or self.setup.run_dir.summarized_step != self.step:
      self.writer.finish(summary)
    distributed.wait_for_all()
    return summary

  def _train(self) -> None:
    waiting = None  # the dispatch whose metrics are not fetched yet
    while self.step < self.end:
      boundary = self._boundary()
      count = min(self.pace.steps, boundary - self.step)
      inputs = self.setup.inputs(self.feed, count)
      self.program = self.program or self._compiled(inputs)
      begin = time.perf_counter()
      with jax.transfer_guard('disallow'):
        self.state, *rows = self.program(self.state, *inputs)
      if waiting:
        self._report(*waiting)
      waiting = (self.step, count, rows, begin)
      self.step += count
      self.val_metrics = {}
      stop = self.interrupts.requested()
      if stop or self.step == boundary or self.pace.settling:
        self._report(*waiting)
        waiting = None
      if not waiting or not distributed.several():
        self.pace.agree()
      if self.step == boundary:
        self._at_boundary()
      if stop and self.step < self.end:
        raise _Stopped

  def _compiled(self, inputs: tuple[Any, ...]) -> Any:
    """Compiles the program of a dispatch, unless a signal comes first."""
    self.progress.phase('compiling')
    begin = time.perf_counter()
    program = self.interrupts.during(
      lambda: self.setup.compile(self.feed, self.state, inputs)
    )
    if program is None:
      raise _Stopped
    distributed.wait_for_all()
    distributed.opened_by_all(
      lambda: out_of_memory.check_program(program, self.setup)
    )
    self.compile_seconds += time.perf_counter() - begin
    self.progress.phase('')
    self.progress.message(f'compiled in {self.compile_seconds:.1f} s')
    return program

  def _boundary(self) -> int:
    """The next step at which to evaluate, save, sample or end."""
    stops = [self.end]
    cfg = self.cfg
    for every in (cfg.eval.every, cfg.checkpoint.every, cfg.log.sample_every):
      if every:
        stops.append((self.step // every + 1) * every)
    return min(stops)

  def _at_boundary(self) -> None:
    """Evaluates, saves and samples, if due at this step and not yet done."""
    if self.step == self.end:
      return  # `_run` does both
    cfg = self.cfg
    due = cfg.eval.every and self.step % cfg.eval.every == 0
    if due and not self.val_metrics:
      self._evaluate()
    rank = self.setup.rank(self.val_metrics)
    due = cfg.checkpoint.every and self.step % cfg.checkpoint.every == 0
    if due or rank < self.best_rank:
      try:
        self._save()
      except UserError as e:
        # A disk that is full now may have space at the next save.
        self.progress.warn(f'{e}; training goes on')
    every = cfg.log.sample_every
    if every and self.step % every == 0 and (sample := self._sample()):
      head = f'--- sample at step {self.step} ---'
      self.progress.message(f'{head}\n{sample["sample"]}')

  def _report(self, first: int, count: int, rows: Any, begin: float) -> None:
    """Logs and shows the metrics of a dispatch.

    Raises:
      BadStep: a bad step is not to be skipped.
    """
    rows, finite = mesh_lib.fetched(rows)
    values = {name: row[:count] for name, row in rows.items()}
    seconds, now = self.pace.finished(count, begin), self.clock()
    speed = self.metrics.speed(count, seconds)
    bad = dict(bad_steps(values))
    skip = self.cfg.train.bad_step == 'skip'
    if not finite and not bad:
      bad = {count - 1: 'the update is not finite'}
    done = min(bad) if bad and not (skip and finite) else count
    for i in range(done):
      step = first + i + 1
      if i in bad:
        self._skipped(step, bad[i])
        continue
      self.skips_in_row = 0
      if step % self.cfg.log.every == 0 or step == self.end:
        row = {name: value[i] for name, value in values.items()}
        self.writer.log(
          step,
          self.metrics.of_steps(row, step)
          | self.metrics.norms(row)
          | speed
          | {
            'data_wait_seconds': self.feed.wait_seconds,
            'seconds': now - seconds * (count - 1 - i) / count,
          },
        )
    good = [i for i in range(done) if i not in bad]
    if good:
      sums = {name: value[good].sum() for name, value in values.items()}
      self.progress.update(
        first + done, self.metrics.of_steps(sums, first + done) | speed
      )
    if done < count:
      raise BadStep(first + done + 1, bad[done], not finite)

  def _skipped(self, step: int, reason: str) -> None:
    self.writer.log(step, {'skipped': reason})
    self.progress.warn(f'step {step} is skipped: {reason}')
    self.skips_in_row += 1
    if self.skips_in_row == self.cfg.train.max_skips:
      raise RunFailed(
        f'{self.skips_in_row} steps in a row up to {step} were bad, the last '
        f'because {reason}; lower optim.learning_rate or '
        + (
          'raise train.spike_deviations'
          if 'spike' in reason
          else 'use model.precision=float32'
        )
      )

  def _after(self, bad: BadStep) -> None:
    """Stops the run before a bad step, or rolls back and skips its data."""
    train = self.cfg.train
    self.step = bad.step - 1
    if bad.lost and train.bad_step != 'rollback':
      raise RunFailed(
        f'step {bad.step}: {bad.reason}, nor are the parameters; '
        + (
          'continue from the last checkpoint with '
          '--config.train.bad_step=rollback, or '
          if self._can_go_back()
          else ''
        )
        + 'start again with a lower optim.learning_rate'
      )
    if train.bad_step == 'stop':
      self._save_for_good()
      raise RunFailed(
        f'step {bad.step}: {bad.reason}; it was not applied and step '
        f'{self.step} is saved; continue with --config.train.bad_step=skip'
        f'{" or =rollback" if self._can_go_back() else ""}, or start again with'
        ' a lower optim.learning_rate or model.precision=float32'
      )
    if int(self.state.rollbacks) >= train.max_rollbacks:
      raise RunFailed(
        f'step {bad.step}: {bad.reason}, after {train.max_rollbacks} '
        'rollbacks; raise train.max_rollbacks, or start again with a lower '
        'optim.learning_rate'
      )
    self.feed.close()
    self.writer.close()
    self.setup.checkpointer.wait()
    self.state = self.setup.gone_back(self.state, bad.step)
    self.step = int(self.state.step)
    self.val_metrics = {}
    self.best_rank = self.setup.best_rank_now()
    self._open_at_step()
    note = f'{bad.reason}; back to step {self.step}, skipping the data since'
    # Logged one step later, because a second rollback keeps the rows of the
    # step that it returns to.
    self.writer.log(self.step + 1, {'rollback': f'step {bad.step}: {note}'})
    self.progress.warn(f'step {bad.step}: {note}')

  def _can_go_back(self) -> bool:
    """Whether there is a checkpoint to which bad_step=rollback can return."""
    kept = checkpoint.steps(self.setup.checkpointer.workdir)
    return self.cfg.checkpoint.every > 0 and bool(kept)

  def _evaluate(self) -> dict[str, Any]:
    """Evaluates the validation split; logs its metrics once per step."""
    self.progress.phase('evaluating')
    params, corpus = self.state.eval_params, self.setup.corpus
    ready = self.interrupts.during(lambda: self.evaluate.compile(params))
    if not ready:
      raise _Stopped
    task_rows: int | None = self.cfg.eval.task_rows
    if task_rows and self.step == self.cfg.train.steps:
      task_rows = None
    evaluation = self.evaluate(
      params,
      corpus.valid,
      corpus.withheld,
      task_rows=task_rows,
      tick=self._tick,
    )
    self.progress.phase('')
    self.progress.update(self.step, evaluation)
    if not self.writer.has(self.step, 'val_loss'):
      self.writer.log(self.step, evaluation | {'seconds': self.clock()})
    self.val_metrics = evaluation
    return evaluation

  def _tick(self) -> None:
    if self.interrupts.requested():
      raise _Stopped

  def _save(self) -> None:
    try:
      self.setup.checkpointer.wait()
    except UserError as e:
      self.progress.warn(f'{e}; trying again')
    if found := self.setup.mend():
      self.progress.warn(found)
    self.writer.mend()
    meta = self.setup.meta(self.step, self.val_metrics, self.writer.count)
    self.writer.flush()  # so that a resumed run has all rows before this step
    self.setup.checkpointer.save(self.state, meta)
    self.best_rank = min(self.best_rank, self.setup.rank(self.val_metrics))

  def _save_for_good(self) -> None:
    """Saves and verifies that the run can resume; all processes must call it.

    Raises:
      RunFailed: the run directory was removed meanwhile.
    """
    workdir = self.setup.run_dir.path

    def there() -> bool:
      saved = self.step in checkpoint.steps(workdir)
      return saved and (workdir / layout.CONFIG).exists()

    for _ in range(2):  # the folder may have been removed during the first save
      self._save()
      self.setup.checkpointer.wait()
      if distributed.told_by_first(there):
        return
    raise RunFailed(
      f'{workdir} was removed or moved while step {self.step} was saved there; '
      'run the same command with a permanent folder'
    )

  def _sample(self) -> dict[str, Any]:
    """Draws a sample and logs it once per step; {} without one."""
    self.progress.phase('sampling')
    text = self.draw_sample(self.state.eval_params)
    self.progress.phase('')
    if text is None:
      return {}
    if not self.writer.has(self.step, 'text'):
      self.writer.text(self.step, text)
    return {'prompt': self.cfg.log.sample_prompt, 'sample': text}

  def _summary(self, evaluation: dict[str, Any]) -> dict[str, Any]:
    trained = self.metrics.speed(self.pace.done, self.pace.seconds or np.inf)
    return (
      evaluation
      | trained
      | memory_bytes()
      | {
        'step': self.step,
        'skipped': int(self.state.skipped),
        'rollbacks': int(self.state.rollbacks),
        'params': param_count(self.state.params),
        'train_seconds': self.pace.seconds,
        'compile_seconds': self.compile_seconds,
        'data_wait_seconds': self.feed.wait_seconds,
        'seconds': self.clock(),
        'flops_per_token': self.metrics.flops_per_token,
        'peak_source': self.metrics.peak_source,
        'precision': self.setup.model.policy.precision,
        'devices': jax.device_count(),
        'processes': jax.process_count(),
      }
    )
