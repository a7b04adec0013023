"""Opens a run: corpus, mesh, model, optimizer and the state to start from."""

import contextlib
import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Key

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.data.corpus import Corpus, open_corpus
from craft_jax.data.index import check_samples
from craft_jax.errors import RunFailed, UserError
from craft_jax.model import build
from craft_jax.model.precision import (
  Platform,
  platform_of,
  resolve_precision,
)
from craft_jax.model.protocol import Model
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint, exports
from craft_jax.runs import run_dir as run_dir_lib
from craft_jax.runs.checkpoint import Checkpointer, Meta, staging
from craft_jax.runs.lock import Lock
from craft_jax.runtime import distributed, keys
from craft_jax.train import out_of_memory
from craft_jax.train.loader import Feed
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.state import State, abstract_state, init_state
from craft_jax.train.step import make_run, make_train_step

_INIT_STREAM, _RUN_STREAM = 0, 1  # of the seed
_PLACES = (
  'data.path', 'data.valid_path', 'data.test_path', 'data.tfds_dir',
  'data.cache_dir',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setup:
  """An opened run.

  Attributes:
    cfg: its config.
    corpus: what it reads.
    mesh: where it runs.
    model: what it trains.
    optimizer: with what.
    start_step: the saved step that it starts from, or None.
    figures: of an evaluation at that step, or {}.
    rows: that `metrics.jsonl` had when that step was saved.
    best_loss: least validation loss (nats) of the saved steps, or infinity.
    run_dir: its folder, opened.
    checkpointer: saves it.
    lock: of the folder; None in all but one process.
    closing: closes the three; a context.
  """

  cfg: Config
  corpus: Corpus
  mesh: Mesh
  model: Model
  optimizer: optax.GradientTransformation
  start_step: int | None
  figures: dict[str, Any]
  rows: int
  best_loss: float
  run_dir: run_dir_lib.RunDir
  checkpointer: Checkpointer
  lock: Lock | None
  closing: contextlib.ExitStack

  @property
  def notes(self) -> list[str]:
    """What a reader should know at the start, a line each."""
    last = self.run_dir.how_the_last_ended()
    return [self.corpus.summary, *self.corpus.notes, *([last] if last else [])]

  @property
  def warnings(self) -> list[str]:
    """What a reader should know even of a quiet run, a line each."""
    rounding = self.run_dir.what_rounds_otherwise()
    return [rounding] if rounding else []

  @property
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

  def _state_at(self, step: int | None) -> State:
    ema = self.cfg.train.ema > 0
    abstract = abstract_state(self.model, self.optimizer, ema, self.mesh)
    if step is not None:
      return self.checkpointer.restore(abstract, step)[0]
    key = jax.random.fold_in(keys.from_seed(self.cfg.seed), _INIT_STREAM)
    with jax.set_mesh(self.mesh):
      return jax.jit(
        lambda key: init_state(self.model, self.optimizer, key, ema),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
      )(key)

  def best_loss_now(self) -> float:
    """Least validation loss (nats) of the saved steps. All processes."""
    return distributed.told_by_first(lambda: _best_loss(self.run_dir.path))

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


def compile_run(
  setup: Setup, feed: Feed, state: State, inputs: tuple[Any, ...]
) -> Any:
  """The program of many steps that a run calls, for its state and inputs."""
  cfg = setup.cfg
  step = make_train_step(cfg, setup.model, setup.optimizer)
  skip = cfg.train.bad_step == 'skip'
  run = make_run(step, feed.fetch, feed.max_steps, skip)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  replicated = mesh_lib.replicated(setup.mesh)
  with jax.set_mesh(setup.mesh):
    return (
      jax.jit(
        run,
        donate_argnums=0,
        out_shardings=(shardings, replicated, replicated),
      )
      .lower(state, *inputs)
      .compile()
    )


def open_setup(cfg: Config, workdir: epath.PathLike) -> Setup:
  """Opens a new run, or continues the one in `workdir`. All processes.

  Sets the number of CPU devices, so it must come before anything that
  touches a JAX backend.

  Raises:
    UserError: a mistake in settings, text or folder; the run in `workdir` has
      other identity settings or another corpus, or is going on; or another
      process of this run had such a mistake, or has other settings or text.
  """
  mesh_lib.set_cpu_devices(mesh_lib.cpu_devices(cfg))
  distributed.check_program('the config', _comparable(cfg))
  distributed.opened_by_all(lambda: exports.check_installed(cfg))
  distributed.opened_by_all(lambda: _check_reach(workdir))
  mesh = mesh_lib.make_mesh(cfg)
  with contextlib.ExitStack() as stack:
    lock = distributed.opened_by_all(lambda: _own(workdir, stack))
    found = distributed.told_by_first(lambda: _look(workdir))
    before = Meta.from_tree(found['last']) if found['last'] else None
    platform = platform_of(mesh.devices.flat[0])
    cfg = _with_precision(cfg, platform, before)
    corpus = distributed.opened_by_all(lambda: _read(cfg, workdir, before))
    distributed.check_same('the precision', cfg.model.precision)
    distributed.check_same('the text', corpus.fingerprint)
    model = build(cfg.model, corpus.vocabulary.size, platform)
    distributed.opened_by_all(
      lambda: out_of_memory.check_start(cfg, model.vocabulary_size, mesh.shape)
    )
    distributed.opened_by_all(
      lambda: out_of_memory.check_disk(cfg, model.vocabulary_size, workdir)
    )
    run_dir = distributed.opened_by_all(
      lambda: run_dir_lib.open_run(
        workdir,
        cfg,
        write=distributed.is_first(),
        precision=model.policy.precision,
        mesh=dict(mesh.shape),
        corpus=corpus.summary,
        corpus_fingerprint=corpus.fingerprint,
        valid_fingerprint=corpus.valid_fingerprint,
        vocabulary_fingerprint=_sha256(corpus.vocabulary.to_json()),
        vocabulary_size=corpus.vocabulary.size,
      )
    )
    checkpointer = stack.enter_context(
      Checkpointer(workdir, cfg.checkpoint.keep, cfg.checkpoint.every)
    )
    return Setup(
      cfg=cfg,
      corpus=corpus,
      mesh=mesh,
      model=model,
      optimizer=build_optimizer(cfg, model, mesh),
      start_step=before.step if before else None,
      figures=dict(before.metrics) if before else {},
      rows=before.rows if before else 0,
      best_loss=found['best_loss'],
      run_dir=run_dir,
      checkpointer=checkpointer,
      lock=lock,
      closing=stack.pop_all(),
    )


def _best_loss(workdir: epath.PathLike) -> float:
  """Least validation loss of the saved steps; infinite where there is none."""
  best = checkpoint.best_step(workdir)
  if best is None:
    return math.inf
  return checkpoint.open_meta(workdir, best).val_loss


def _look(workdir: epath.PathLike) -> dict[str, Any]:
  """What is saved: facts of the last whole step, and the least loss of all."""
  if not checkpoint.steps(workdir):
    return {'last': None, 'best_loss': math.inf}
  last = checkpoint.open_meta(workdir, checkpoint.resolve_step(workdir))
  return {'last': last.to_tree(), 'best_loss': _best_loss(workdir)}


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _comparable(cfg: Config) -> str:
  """The settings that all processes must share: not where a host has files."""
  flat = config_lib.flatten(cfg)
  return json.dumps({k: v for k, v in flat.items() if k not in _PLACES})


def _check_reach(workdir: epath.PathLike) -> None:
  if distributed.several() and staging.is_staged(workdir):
    raise UserError(
      f'{workdir}: a run of several processes cannot be kept there, since each '
      'saves its part through its own disk; use gs:// or a file system that '
      'all hosts share'
    )


def _own(workdir: epath.PathLike, stack: contextlib.ExitStack) -> Lock | None:
  """Takes the run directory for this run."""
  run_dir_lib.check_ours(workdir)
  if not distributed.is_first():
    return None
  lock = Lock(workdir)
  stack.callback(lock.close)
  return lock


def _last_step(workdir: epath.PathLike, every: int) -> int | None:
  """The last whole checkpoint of those that are multiples of `every`."""
  if not any(step % every == 0 for step in checkpoint.steps(workdir)):
    return None
  return checkpoint.resolve_step(workdir, every=every)


def _read(cfg: Config, workdir: epath.PathLike, before: Meta | None) -> Corpus:
  if not distributed.is_first():
    run_dir_lib.check_shared(workdir)
  if before:
    _check_identity(before.config, cfg, workdir)
  corpus = open_corpus(cfg, before.vocabulary if before else None)
  _check_corpus(cfg, corpus, before, workdir)
  _check_prompt(cfg, corpus)
  return corpus


def _check_prompt(cfg: Config, corpus: Corpus) -> None:
  """Refuses an impossible prompt now, not after training."""
  try:
    corpus.vocabulary.encode(cfg.log.sample_prompt)
  except UserError as e:
    raise UserError(f'log.sample_prompt: {e}') from e


def _with_precision(
  cfg: Config, platform: Platform, before: Meta | None
) -> Config:
  """The config with `model.precision` decided: once, for the whole run."""
  precision = cfg.model.precision
  if precision == 'auto' and before:
    precision = before.config.model.precision
  precision = resolve_precision(precision, platform)
  model = dataclasses.replace(cfg.model, precision=precision)
  return dataclasses.replace(cfg, model=model)


def _check_identity(old: Config, new: Config, workdir: epath.PathLike) -> None:
  changes = config_lib.identity_changes(old, new)
  if changes:
    raise UserError(
      f'the run in {workdir} was started with other settings '
      f'({"; ".join(changes)}); use those, or another --workdir'
    )


def _check_corpus(
  cfg: Config, corpus: Corpus, before: Meta | None, workdir: epath.PathLike
) -> None:
  config_lib.check_corpus(
    cfg, {split.name: len(split.tokens) for split in corpus.splits}
  )
  check_samples(
    cfg.train.steps,
    cfg.train.batch_size,
    len(corpus.train.tokens),
    cfg.model.context,
  )
  if before and before.fingerprint != corpus.fingerprint:
    raise UserError(
      f'the corpus is not the one that {workdir} was started with: its '
      f'fingerprint is {corpus.fingerprint[:12]}, not '
      f'{before.fingerprint[:12]}; give the old text, or another --workdir'
    )
