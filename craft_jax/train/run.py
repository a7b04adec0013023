"""A run from start to end: opens it, runs the loop, records how it ended."""

import contextlib
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.data.corpus import Corpus
from craft_jax.data.pairs import rows_of
from craft_jax.data.prepare import open_corpus
from craft_jax.errors import INTERRUPTED, OutOfMemory, UserError
from craft_jax.inference import metrics
from craft_jax.inference.evaluate import Evaluator
from craft_jax.inference.sampling.generate import sample_text
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.protocol import Model
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint, exports, layout, parallel_read
from craft_jax.runs import run_dir as run_dir_lib
from craft_jax.runs.checkpoint import Checkpointer, Meta, staging
from craft_jax.runs.lock import Lock
from craft_jax.runs.writers import JsonlWriter, SilentWriter
from craft_jax.runtime import distributed, files
from craft_jax.runtime.signals import Interrupts
from craft_jax.train import checks, init_from, out_of_memory, resume
from craft_jax.train.loader import open_feed
from craft_jax.train.loop import Loop
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.optim.schedules import run_schedule
from craft_jax.train.plan import advice
from craft_jax.train.setup import Setup, best_rank
from craft_jax.train.step import make_train_step
from craft_jax.train.step_metrics import StepMetrics
from craft_jax.types import Params

_ALLOCATING = 'allocating the state'  # while there is no loop yet
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
  """Trains until `train.steps` or `train.stop_at_step`; resumes if possible.

  Args:
    cfg: run settings.
    workdir: run directory, local or `gs://` or `s3://`.
    quiet: whether to hide progress.
    interrupts: entered context of signal handlers; None makes one.

  Returns:
    The summary: metrics of the last evaluation (`val_...`), `step`, `params`,
    `chars_per_second`, `train_seconds`, `compile_seconds` and others.

  Raises:
    UserError: settings, text or run directory are invalid.
    OutOfMemory: the run needs more memory than there is.
    RunFailed: a bad step ended the run, or a signal did after saving.
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
      error = _record_failure(e, setup, doing)
      if error is e:
        raise
      raise error from e
    _finish(setup, summary['step'])
  return summary


def open_loop(setup: Setup, quiet: bool, interrupts: Interrupts) -> Loop:
  """Makes the loop of an opened run."""
  evaluate = Evaluator(
    setup.cfg, setup.model, setup.corpus.vocabulary, setup.mesh
  )
  return Loop(setup, evaluate, _sampler(setup), quiet, interrupts)


def _sampler(setup: Setup) -> Callable[[Params], str | None]:
  """Makes a function that draws the sample of `log.sample_...` settings.

  All processes must call it; it returns None except in process 0, or if no
  sample is configured. The sample depends on the parameters alone. Of pairs it
  is a prompt with its completion: `log.sample_prompt`, or else the first prompt
  of the validation split.
  """
  log, vocabulary = setup.cfg.log, setup.corpus.vocabulary
  pairs = setup.cfg.data.format == 'pairs'
  prompt = log.sample_prompt
  if pairs and not prompt:
    window = setup.corpus.valid.tokens[: setup.cfg.model.context]
    prompt = rows_of(window, vocabulary)[0].prompt

  def draw_sample(params: Params) -> str | None:
    whole = mesh_lib.whole_on_first(params) if log.sample_chars else None
    if whole is None:
      return None
    text = sample_text(
      setup.model,
      whole,
      vocabulary,
      prompt,
      log.sample_chars,
      setup.cfg.seed,
      SampleSettings(log.sample_temperature, end=pairs),
      setup.corpus.documents > 1,
      setup.cfg.data.format,
    )
    return f'{prompt} → {text}' if pairs else prompt + text

  return draw_sample


def _record_failure(
  error: BaseException, setup: Setup, doing: str
) -> BaseException:
  """Records in the run directory how a run failed; returns what to raise."""
  if out_of_memory.is_shortage(error):
    needed = out_of_memory.asked_bytes(str(error))
    error = out_of_memory.shortage(setup, doing, needed)
  stopped = getattr(error, 'code', None) == INTERRUPTED
  stopped = stopped or isinstance(error, KeyboardInterrupt)
  with contextlib.suppress(UserError):  # report the first error
    if isinstance(error, OutOfMemory):
      facts = {name: error.facts[name] for name in ('doing', 'bytes')}
      setup.run_dir.update(out_of_memory=facts)
    setup.run_dir.finish(
      layout.STOPPED if stopped else layout.FAILED,
      str(error) or type(error).__name__,
    )
  return error


def _finish(setup: Setup, step: int) -> None:
  """Records that a run is finished, or the step at which it stopped."""
  run_dir = setup.run_dir
  if step == setup.cfg.train.steps:
    run_dir.finish(layout.FINISHED, 'finished')
  else:
    run_dir.finish(layout.STOPPED, f'stopped at step {step}')
  if run_dir.writes and not files.is_remote(run_dir.path):
    parallel_read.keep_large(pathlib.Path(run_dir.path))


def open_setup(cfg: Config, workdir: epath.PathLike) -> Setup:
  """Opens a new run, or resumes the one in `workdir`.

  All processes must call it. Sets the number of CPU devices, so that it must
  come before JAX initializes a backend.

  Raises:
    UserError: settings, text or folder are invalid; the run in `workdir` has
      other identity settings or another corpus, or is still running; another
      process raised such an error, or has other settings or text.
  """
  mesh_lib.set_cpu_devices(mesh_lib.cpu_devices(cfg))
  distributed.check_program('the config', _comparable(cfg))
  distributed.opened_by_all(lambda: exports.check_installed(cfg))
  distributed.opened_by_all(lambda: _check_reach(workdir))
  mesh = mesh_lib.make_mesh(cfg)
  platform = platform_of(mesh.devices.flat[0])
  build(cfg.model, 1, platform).check_tensor(mesh.shape['tensor'])
  with contextlib.ExitStack() as stack:
    lock = distributed.opened_by_all(lambda: _take_lock(workdir, stack))
    found = distributed.told_by_first(lambda: _saved(workdir))
    before = Meta.from_tree(found['last']) if found['last'] else None
    cfg = checks.with_precision(cfg, platform, before)
    if before:
      saved, asked = before, cfg
      cfg = distributed.opened_by_all(
        lambda: checks.continued(asked, saved, workdir)
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
      lambda: advice.check_start(cfg, model, mesh.shape, workdir)
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
    ) -> JsonlWriter | SilentWriter:
      if not distributed.is_first():
        return SilentWriter()
      path, facts = run_dir.path, run_dir.metadata
      return exports.open_writer(path, step, cfg, facts, warn)

    more_notes, from_parent = [resume.described(cfg)], None
    if parent:
      more_notes += init_from.notes(parent, cfg, corpus.vocabulary)
    if cfg.train.init_from:
      # A run that goes on asks for it only to roll back before its first save.
      from_parent = functools.partial(
        init_from.start, parent, cfg, model, corpus.vocabulary
      )

    return Setup(
      cfg=cfg,
      corpus=corpus,
      mesh=mesh,
      model=model,
      optimizer=optimizer,
      train_step=make_train_step(cfg, model, optimizer),
      step_metrics=_step_metrics(cfg, corpus, model),
      from_parent=from_parent,
      more_notes=more_notes,
      start_step=before.step if before else None,
      figures=dict(before.metrics) if before else {},
      rows=before.rows if before else 0,
      best_rank=found['best_rank'],
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


def last_save(workdir: epath.PathLike) -> Meta | None:
  """Metadata of the last complete checkpoint; None where there is none."""
  if not checkpoint.steps(workdir):
    return None
  return checkpoint.open_meta(workdir, checkpoint.resolve_step(workdir))


def _saved(workdir: epath.PathLike) -> dict[str, Any]:
  """Metadata of the last complete checkpoint, and the best rank so far."""
  last = last_save(workdir)
  return {
    'last': last and last.to_tree(),
    'best_rank': best_rank(workdir) if last else math.inf,
  }


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _comparable(cfg: Config) -> str:
  """Settings that all processes must share as JSON: all but local paths."""
  flat = config_lib.flatten(cfg)
  return json.dumps({k: v for k, v in flat.items() if k not in _PLACES})


def _check_reach(workdir: epath.PathLike) -> None:
  if distributed.several() and staging.is_staged(workdir):
    raise UserError(
      f'{workdir}: a run of several processes cannot be saved there, since '
      'each writes its part through its own disk; use gs:// or a file system '
      'that all hosts share'
    )


def _take_lock(
  workdir: epath.PathLike, stack: contextlib.ExitStack
) -> Lock | None:
  """Locks the run directory in process 0."""
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
  for check in checks.OF_CORPUS.values():
    check(cfg, corpus)
  if before:
    checks.check_same_text(corpus, before, workdir)
  return corpus
