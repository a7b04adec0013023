"""Opens a run: corpus, mesh, model, optimizer and the state to start from."""

import dataclasses
import math
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Key

from craft_jax import checkpoint, config
from craft_jax.checkpoint import Checkpointer, Meta
from craft_jax.data.corpus import Corpus, open_corpus
from craft_jax.data.index import check_samples
from craft_jax.errors import UserError
from craft_jax.model import build
from craft_jax.model.precision import resolve_precision
from craft_jax.model.transformer import Decoder
from craft_jax.optim.optimizers import build_optimizer
from craft_jax.settings import Config
from craft_jax.sharding import mesh as mesh_lib
from craft_jax.track import rundir
from craft_jax.train.state import State, abstract_state, init_state

_INIT_STREAM, _RUN_STREAM = 0, 1  # of the seed


@dataclasses.dataclass(frozen=True)
class Setup:
  """An opened run.

  Attributes:
    cfg: its config.
    corpus: what it reads.
    mesh: where it runs.
    model: what it trains.
    optimizer: with what.
    state: on the mesh, new or restored.
    figures: of an evaluation at this very step, or {}.
    best_loss: least validation loss (nats) of the saved steps, or infinity.
    run_dir: its folder, opened.
    checkpointer: saves it; to be closed.
  """

  cfg: Config
  corpus: Corpus
  mesh: Mesh
  model: Decoder
  optimizer: optax.GradientTransformation
  state: State
  figures: dict[str, Any]
  best_loss: float
  run_dir: rundir.RunDir
  checkpointer: Checkpointer

  @property
  def run_key(self) -> Key[Array, '']:
    """The key of dropout and augmentation, on the mesh."""
    key = jax.random.fold_in(jax.random.key(self.cfg.seed), _RUN_STREAM)
    return jax.device_put(key, mesh_lib.replicated(self.mesh))

  def meta(self, step: int, figures: dict[str, Any]) -> Meta:
    """What a checkpoint says beside the arrays.

    Args:
      step: steps done.
      figures: of an evaluation at this very step, or {}.
    """
    return Meta(
      step=step,
      config=self.cfg,
      vocabulary=self.corpus.vocabulary,
      fingerprint=self.corpus.fingerprint,
      metrics={k: v for k, v in figures.items() if isinstance(v, (int, float))},
      withheld=self.corpus.withheld,
      documents=self.corpus.documents > 1,
    )


def open_setup(cfg: Config, workdir: epath.PathLike) -> Setup:
  """Opens a new run, or continues the one in `workdir`.

  Sets the number of CPU devices, so it must come before anything that
  touches a JAX backend.

  Raises:
    UserError: a mistake in settings, text or folder; the run in `workdir` has
      other identity settings or another corpus.
  """
  rundir.check_ours(workdir)
  mesh = mesh_lib.make_mesh(cfg)
  before = None
  if checkpoint.steps(workdir):
    before = checkpoint.open_meta(workdir, checkpoint.resolve_step(workdir))
  cfg = _with_precision(cfg, before)
  if before:
    _check_identity(before.config, cfg, workdir)
  corpus = open_corpus(cfg, before.vocabulary if before else None)
  _check_corpus(cfg, corpus, before, workdir)
  _check_prompt(cfg, corpus)
  model = build(cfg.model, corpus.vocabulary.size)
  optimizer = build_optimizer(cfg, model.precision, mesh)
  run_dir = rundir.open_run(
    workdir,
    cfg,
    precision=model.precision,
    mesh=dict(mesh.shape),
    corpus=corpus.summary,
    corpus_fingerprint=corpus.fingerprint,
  )
  checkpointer = Checkpointer(workdir, cfg.checkpoint.keep)
  try:
    state = _first_state(cfg, checkpointer, before, model, optimizer, mesh)
  except UserError:
    checkpointer.close()
    raise
  best = checkpoint.best_step(workdir)
  best_loss = (
    math.inf if best is None else checkpoint.open_meta(workdir, best).val_loss
  )
  return Setup(
    cfg,
    corpus,
    mesh,
    model,
    optimizer,
    state,
    dict(before.metrics) if before else {},
    best_loss,
    run_dir,
    checkpointer,
  )


def _first_state(
  cfg: Config,
  checkpointer: Checkpointer,
  before: Meta | None,
  model: Decoder,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> State:
  """The state to start from, on the mesh: restored, or new."""
  ema = cfg.train.ema > 0
  abstract = abstract_state(model, optimizer, ema, mesh)
  if before:
    return checkpointer.restore(abstract, before.step)[0]
  key = jax.random.fold_in(jax.random.key(cfg.seed), _INIT_STREAM)
  return jax.jit(
    lambda key: init_state(model, optimizer, key, ema),
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
  )(key)


def _check_prompt(cfg: Config, corpus: Corpus) -> None:
  """Refuses an impossible prompt now, not after training."""
  try:
    corpus.vocabulary.encode(cfg.log.sample_prompt)
  except UserError as e:
    raise UserError(f'log.sample_prompt: {e}') from e


def _with_precision(cfg: Config, before: Meta | None) -> Config:
  """The config with `model.precision` decided: once, for the whole run."""
  precision = cfg.model.precision
  if precision == 'auto' and before:
    precision = before.config.model.precision
  model = dataclasses.replace(cfg.model, precision=resolve_precision(precision))
  return dataclasses.replace(cfg, model=model)


def _check_identity(old: Config, new: Config, workdir: epath.PathLike) -> None:
  changes = config.identity_changes(old, new)
  if changes:
    raise UserError(
      f'the run in {workdir} was started with other settings '
      f'({"; ".join(changes)}); use those, or another --workdir'
    )


def _check_corpus(
  cfg: Config, corpus: Corpus, before: Meta | None, workdir: epath.PathLike
) -> None:
  config.check_corpus(
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
