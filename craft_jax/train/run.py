"""A run from start to end: opened, handed to the loop, its ending noted."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.data.corpus import Corpus
from craft_jax.data.index import check_samples
from craft_jax.data.prepare import open_corpus
from craft_jax.errors import INTERRUPTED, OutOfMemory, UserError
from craft_jax.inference import metrics
from craft_jax.inference.evaluate import Evaluator
from craft_jax.inference.sampling.generate import sample_text
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import (
  Platform,
  platform_of,
  resolve_precision,
)
from craft_jax.model.protocol import Model
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint, exports, layout, parallel_read
from craft_jax.runs import run_dir as run_dir_lib
from craft_jax.runs.checkpoint import Checkpointer, Meta, staging
from craft_jax.runs.lock import Lock
from craft_jax.runs.writers import RunWriter, SilentWriter
from craft_jax.runtime import distributed, files
from craft_jax.runtime.signals import Interrupts
from craft_jax.train import init_from, out_of_memory
from craft_jax.train.loader import open_feed
from craft_jax.train.loop import Loop
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.optim.schedules import run_schedule
from craft_jax.train.plan import advice
from craft_jax.train.resume import resumed
from craft_jax.train.setup import Setup, best_loss
from craft_jax.train.step import make_train_step
from craft_jax.train.step_metrics import StepMetrics
from craft_jax.types import Params

_ALLOCATING = 'allocating the state'  # until there is a loop
_PLACES = (
  'data.path', 'data.valid_path', 'data.test_path', 'data.tfds_dir',
  'data.cache_dir',
)  # fmt: skip


def train(
  cfg: Config,
  workdir: epath.PathLike,
  *,
  quiet: bool = False,
  interrupts: Interrupts | None = None,
) -> dict[str, Any]:
  """Trains to `train.steps` or `train.stop_at_step`, from where `workdir` is.

  Args:
    cfg: the run.
    workdir: its folder.
    quiet: no progress.
    interrupts: entered by the caller; by default for the time of the call.

  Returns:
    The summary: figures of the last evaluation (`val_...`), `step`, `params`,
    `chars_per_second`, `train_seconds`, `compile_seconds`.

  Raises:
    UserError: see `open_setup`.
    OutOfMemory: memory is short.
    RunFailed: a bad step that ends the run, or a signal came.
    Interrupted: a signal came before there was anything to save.
  """
  if interrupts is None:
    with Interrupts() as interrupts:
      return train(cfg, workdir, quiet=quiet, interrupts=interrupts)
  setup = open_setup(cfg, workdir)
  loop: Loop | None = None
  with setup.closing:
    try:
      loop = open_loop(setup, quiet, interrupts)
      summary = loop.run()
    except BaseException as e:
      doing = loop.progress.doing or 'training' if loop else _ALLOCATING
      error = _noted(e, setup, doing)
      if error is e:
        raise
      raise error from e
    _finish(setup, summary['step'])
  return summary


def open_loop(setup: Setup, quiet: bool, interrupts: Interrupts) -> Loop:
  """The loop of an opened run, handed what it evaluates and samples with."""
  evaluate = Evaluator(
    setup.cfg, setup.model, setup.corpus.vocabulary, setup.mesh
  )
  return Loop(setup, evaluate, _sampler(setup), quiet, interrupts)


def _sampler(setup: Setup) -> Callable[[Params], str | None]:
  """Draws prompt and continuation by `log.sample_...`. All processes.

  The same for the same parameters, whenever it is drawn; None where no sample
  is asked for, or this is not the first process.
  """
  log = setup.cfg.log

  def draw_sample(params: Params) -> str | None:
    whole = mesh_lib.whole_on_first(params) if log.sample_chars else None
    if whole is None:
      return None
    return log.sample_prompt + sample_text(
      setup.model,
      whole,
      setup.corpus.vocabulary,
      log.sample_prompt,
      log.sample_chars,
      setup.cfg.seed,
      SampleSettings(log.sample_temperature, end=False),
      setup.corpus.documents > 1,
    )

  return draw_sample


def _noted(error: BaseException, setup: Setup, doing: str) -> BaseException:
  """Writes how a run failed; the error to raise."""
  if out_of_memory.is_shortage(error):
    needed = out_of_memory.asked_bytes(str(error))
    error = out_of_memory.shortage(setup, doing, needed)
  stopped = getattr(error, 'code', None) == INTERRUPTED
  stopped = stopped or isinstance(error, KeyboardInterrupt)
  with contextlib.suppress(UserError):  # the first error is to be told
    if isinstance(error, OutOfMemory):
      facts = {name: error.facts[name] for name in ('doing', 'bytes')}
      setup.run_dir.update(out_of_memory=facts)
    setup.run_dir.finish(
      layout.STOPPED if stopped else layout.FAILED,
      str(error) or type(error).__name__,
    )
  return error


def _finish(setup: Setup, step: int) -> None:
  """Writes that a run is done, or how far it got."""
  run_dir = setup.run_dir
  if step == setup.cfg.train.steps:
    run_dir.finish(layout.FINISHED, 'finished')
  else:
    run_dir.finish(layout.STOPPED, f'stopped at step {step}')
  if run_dir.writes and not files.is_remote(run_dir.path):
    parallel_read.keep_large(pathlib.Path(run_dir.path))


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
  platform = platform_of(mesh.devices.flat[0])
  build(cfg.model, 1, platform).check_tensor(mesh.shape['tensor'])
  with contextlib.ExitStack() as stack:
    lock = distributed.opened_by_all(lambda: _own(workdir, stack))
    found = distributed.told_by_first(lambda: _look(workdir))
    before = Meta.from_tree(found['last']) if found['last'] else None
    cfg = _with_precision(cfg, platform, before)
    if before:
      old, step = before.config, before.step
      cfg = distributed.opened_by_all(
        lambda: resumed(old, cfg, step, os.fspath(workdir))
      )
    parent = None
    if cfg.train.init_from and not before:
      parent = distributed.opened_by_all(
        lambda: init_from.open_parent(cfg.train.init_from)
      )
    corpus = distributed.opened_by_all(
      lambda: _read(cfg, workdir, before, parent)
    )
    distributed.check_same('the precision', cfg.model.precision)
    distributed.check_same('the text', corpus.fingerprint)
    model = build(cfg.model, corpus.vocabulary.size, platform)
    distributed.opened_by_all(
      lambda: advice.check_start(cfg, model.vocabulary_size, mesh.shape)
    )
    distributed.opened_by_all(
      lambda: advice.check_disk(cfg, model.vocabulary_size, workdir)
    )
    optimizer = distributed.opened_by_all(
      lambda: build_optimizer(cfg, model, mesh)
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
        **({'parent': parent.facts} if parent else {}),
      )
    )
    checkpointer = stack.enter_context(
      Checkpointer(workdir, cfg.checkpoint.keep, cfg.checkpoint.every)
    )

    def writer(
      step: int, warn: Callable[[str], None]
    ) -> RunWriter | SilentWriter:
      if not distributed.is_first():
        return SilentWriter()
      path, facts = run_dir.path, run_dir.metadata
      return exports.open_writer(path, step, cfg, facts, warn)

    return Setup(
      cfg=cfg,
      corpus=corpus,
      mesh=mesh,
      model=model,
      optimizer=optimizer,
      train_step=make_train_step(cfg, model, optimizer),
      step_metrics=_step_metrics(cfg, corpus, model),
      parent=parent,
      start_step=before.step if before else None,
      figures=dict(before.metrics) if before else {},
      rows=before.rows if before else 0,
      best_loss=found['best_loss'],
      run_dir=run_dir,
      checkpointer=checkpointer,
      lock=lock,
      open_feed=lambda index: open_feed(cfg, corpus, mesh, index),
      open_writer=writer,
      closing=stack.pop_all(),
    )


def _step_metrics(cfg: Config, corpus: Corpus, model: Model) -> StepMetrics:
  optim = cfg.optim
  peak: tuple[float | None, str]
  peak = None, 'unknown: the table is of bfloat16 peaks'
  if model.policy.precision == 'bfloat16':
    device = jax.devices()[0]
    peak = metrics.peak_flops(device.device_kind, device.platform)
  return StepMetrics(
    cfg,
    corpus,
    run_schedule(optim, cfg.train, optim.learning_rate),
    model.flops_per_token(cfg.model.context),
    peak,
  )


def _look(workdir: epath.PathLike) -> dict[str, Any]:
  """What is saved: facts of the last whole step, and the least loss of all."""
  if not checkpoint.steps(workdir):
    return {'last': None, 'best_loss': math.inf}
  last = checkpoint.open_meta(workdir, checkpoint.resolve_step(workdir))
  return {'last': last.to_tree(), 'best_loss': best_loss(workdir)}


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


def _read(
  cfg: Config,
  workdir: epath.PathLike,
  before: Meta | None,
  parent: init_from.Parent | None,
) -> Corpus:
  if not distributed.is_first():
    run_dir_lib.check_shared(workdir)
  vocabulary = before.vocabulary if before else None
  if parent:
    vocabulary = init_from.grown_vocabulary(parent, cfg)
    init_from.check(parent, cfg, vocabulary)
  corpus = open_corpus(cfg, vocabulary)
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
