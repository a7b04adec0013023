"""The training loop: dispatch, report one call late, evaluate, save."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from etils import epath

from craft_jax.errors import INTERRUPTED, RunFailed
from craft_jax.evaluate import Evaluator
from craft_jax.model import param_count
from craft_jax.sample.generate import sample_text
from craft_jax.sample.settings import SampleSettings
from craft_jax.settings import Config
from craft_jax.sharding import mesh as mesh_lib
from craft_jax.track.progress import Progress
from craft_jax.track.writers import JsonlWriter
from craft_jax.train.feed import open_feed
from craft_jax.train.figures import Figures, Pace, memory_bytes
from craft_jax.train.setup import Setup, open_setup
from craft_jax.train.step import make_run, make_train_step


def train(
  cfg: Config, workdir: epath.PathLike, *, quiet: bool = False
) -> dict[str, Any]:
  """Trains to `train.steps` or `train.stop_at_step`, from where `workdir` is.

  Returns:
    The summary: figures of the last evaluation (`val_...`), `step`, `params`,
    `chars_per_second`, `train_seconds`, `compile_seconds`.

  Raises:
    UserError: see `open_setup`.
    RunFailed: a loss, gradient or update is not finite, or a signal came.
  """
  with _interrupts() as interrupted:
    setup = open_setup(cfg, workdir)
    return _trained(setup, quiet, interrupted)


def _trained(
  setup: Setup, quiet: bool, interrupted: threading.Event
) -> dict[str, Any]:
  with setup.checkpointer:
    try:
      summary = _Loop(setup, quiet).run(interrupted)
    except BaseException as e:
      setup.run_dir.finish(str(e) or type(e).__name__)
      raise
  finished = summary['step'] == setup.cfg.train.steps
  setup.run_dir.finish(
    'finished' if finished else f'stopped at step {summary["step"]}'
  )
  return summary


# What must be finite, in the order in which it is computed.
_FINITE = {'loss': 'loss', 'gradient': 'grad_norm', 'update': 'update_norm'}


class _Loop:
  """The state of a running run on the host."""

  def __init__(self, setup: Setup, quiet: bool):
    cfg = setup.cfg
    self.setup, self.cfg = setup, cfg
    self.state = setup.state
    self.step = int(setup.state.step)
    self.end = cfg.train.stop_at_step or cfg.train.steps
    self.best_loss = setup.best_loss
    self.evaluation: dict[str, Any] = {}  # of this very step
    # A run that is evaluated again where it was evaluated logs no second row.
    self.evaluated_step = self.step if setup.figures else -1
    self.compile_seconds = 0.0
    self.figures = Figures(setup)
    self.evaluate = Evaluator(
      cfg, setup.model, setup.corpus.vocabulary, setup.mesh
    )
    self.writer = JsonlWriter(setup.run_dir.path, self.step)
    self.progress = Progress(cfg.train.steps, step=self.step, quiet=quiet)
    data_index = self.step + int(setup.state.data_offset)
    self.feed = open_feed(cfg, setup.corpus, setup.mesh, data_index)
    self.pace = Pace(cfg.train.steps_per_call, self.feed.max_steps)

  def run(self, interrupted: threading.Event) -> dict[str, Any]:
    setup = self.setup
    try:
      with self.progress:
        for line in (setup.corpus.summary, *setup.corpus.notes):
          self.progress.message(line)
        if self.step < self.end:
          self._train(interrupted)
        if interrupted.is_set() and self.step < self.end:
          self._save()
          setup.checkpointer.wait()
          raise RunFailed(
            f'interrupted; step {self.step} is saved, the same command goes on',
            INTERRUPTED,
          )
        if not self.evaluation:
          self._evaluate()
        self._save()
        setup.checkpointer.wait()
        summary = self._summary() | self._sample()
      if self.pace.done:  # else an earlier start has said it all
        self.writer.finish(summary)
      return summary
    finally:
      self.feed.close()
      self.writer.close()

  def _train(self, interrupted: threading.Event) -> None:
    key, replicated = self.setup.run_key, mesh_lib.replicated(self.setup.mesh)
    program = None
    waiting = None  # the call whose metrics are not fetched yet
    while self.step < self.end and not interrupted.is_set():
      boundary = self._boundary()
      count = min(self.pace.steps, boundary - self.step)
      trips = jax.device_put(np.int32(count), replicated)
      inputs = (self.feed.source(count), key, trips)
      program = program or self._compile(inputs)
      begin = time.perf_counter()
      with jax.transfer_guard('disallow'):
        self.state, rows = program(self.state, *inputs)
      if waiting:
        self._report(*waiting)
      waiting = (self.step, count, rows, begin)
      self.step += count
      self.evaluation = {}
      if self.step == boundary:
        self._report(*waiting)
        waiting = None
        self._at_boundary()
    if waiting:
      self._report(*waiting)

  def _compile(self, inputs: tuple[Any, ...]) -> Any:
    self.progress.phase('compiling')
    begin = time.perf_counter()
    step = make_train_step(self.cfg, self.setup.model, self.setup.optimizer)
    run = make_run(step, self.feed.fetch, self.feed.max_steps)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    program = (
      jax.jit(
        run,
        donate_argnums=0,
        out_shardings=(shardings, mesh_lib.replicated(self.setup.mesh)),
      )
      .lower(self.state, *inputs)
      .compile()
    )
    self.compile_seconds = time.perf_counter() - begin
    self.progress.phase('')
    self.progress.message(f'compiled in {self.compile_seconds:.1f} s')
    return program

  def _boundary(self) -> int:
    """The next step at which to evaluate, save or end."""
    stops = [self.end]
    for every in (self.cfg.eval.every, self.cfg.checkpoint.every):
      if every:
        stops.append((self.step // every + 1) * every)
    return min(stops)

  def _at_boundary(self) -> None:
    cfg = self.cfg
    if cfg.eval.every and self.step % cfg.eval.every == 0:
      self._evaluate()
    improved = self.evaluation and self.evaluation['val_loss'] < self.best_loss
    due = cfg.checkpoint.every and self.step % cfg.checkpoint.every == 0
    if self.step < self.end and (improved or due):
      self._save()

  def _report(self, first: int, count: int, rows: Any, begin: float) -> None:
    """Writes and shows the metrics of a call; stops at a bad step."""
    values = {k: np.asarray(v)[:count] for k, v in jax.device_get(rows).items()}
    speed = self.figures.speed(count, self.pace.finished(count, begin))
    bad = np.flatnonzero(values['finite'] == 0)
    good = int(bad[0]) if bad.size else count
    for i in range(good):
      step = first + i + 1
      if step % self.cfg.log.every == 0 or step == self.end:
        row = {name: value[i] for name, value in values.items()}
        self.writer.log(
          step,
          self.figures.of_steps(row, step)
          | self.figures.norms(row)
          | speed
          | {'data_wait_seconds': self.feed.wait_seconds},
        )
    if good:
      sums = {name: value[:good].sum() for name, value in values.items()}
      self.progress.update(
        first + good, self.figures.of_steps(sums, first + good) | speed
      )
    if bad.size:
      what = next(
        word
        for word, name in _FINITE.items()
        if not np.isfinite(values[name][good])
      )
      raise RunFailed(
        f'the {what} of step {first + good + 1} is not finite and was not '
        'applied; lower optim.learning_rate, set optim.clip_norm, or use '
        'model.precision=float32'
      )

  def _evaluate(self) -> None:
    self.progress.phase('evaluating')
    corpus = self.setup.corpus
    self.evaluation = self.evaluate(
      self.state.eval_params, corpus.valid, corpus.withheld
    )
    self.progress.phase('')
    self.progress.update(self.step, self.evaluation)
    if self.step != self.evaluated_step:
      self.writer.log(self.step, self.evaluation)

  def _save(self) -> None:
    meta = self.setup.meta(self.step, self.evaluation)
    if self.setup.checkpointer.save(self.state, meta):
      self.best_loss = min(self.best_loss, meta.val_loss)

  def _sample(self) -> dict[str, Any]:
    log, setup = self.cfg.log, self.setup
    if not log.sample_chars:
      return {}
    self.progress.phase('sampling')
    text = log.sample_prompt + sample_text(
      setup.model,
      self.state.eval_params,
      setup.corpus.vocabulary,
      log.sample_prompt,
      log.sample_chars,
      self.cfg.seed,
      SampleSettings(log.sample_temperature, end=False),
      setup.corpus.documents > 1,
    )
    if self.step != self.evaluated_step:
      self.writer.text(self.step, text)
    return {'prompt': log.sample_prompt, 'sample': text}

  def _summary(self) -> dict[str, Any]:
    trained = self.figures.speed(self.pace.done, self.pace.seconds or np.inf)
    return (
      self.evaluation
      | trained
      | memory_bytes()
      | {
        'step': self.step,
        'params': param_count(self.state.params),
        'train_seconds': self.pace.seconds,
        'compile_seconds': self.compile_seconds,
        'data_wait_seconds': self.feed.wait_seconds,
        'flops_per_symbol': self.figures.flops_per_symbol,
        'peak_source': self.figures.peak_source,
        'precision': self.setup.model.precision,
        'devices': jax.device_count(),
      }
    )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
  """Yields an event that the first SIGINT or SIGTERM sets.

  The second one acts as always, so a stuck run can still be ended. Outside
  the main thread signals are left alone.
  """
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event
    return
  kinds = (signal.SIGINT, signal.SIGTERM)
  before = {kind: signal.getsignal(kind) for kind in kinds}

  def restore() -> None:
    for kind, handler in before.items():
      signal.signal(kind, handler)

  def on_signal(number: int, frame: Any) -> None:
    del number, frame
    event.set()
    restore()

  for kind in kinds:
    signal.signal(kind, on_signal)
  try:
    yield event
  finally:
    restore()
