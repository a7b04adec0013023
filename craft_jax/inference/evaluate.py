"""Deterministic evaluation of a model on a whole split."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from craft_jax.config.settings import Config
from craft_jax.data.corpus import Corpus, Split
from craft_jax.data.pairs import Pair, rows_of
from craft_jax.data.prepare import open_corpus
from craft_jax.data.text.character_classes import classes_of, sizes_of
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import checked_stride, eval_batches
from craft_jax.errors import UserError
from craft_jax.inference import (
  dynamic_evaluation,
  metrics,
  score,
  task_evaluation,
)
from craft_jax.inference.load import Trained, load_model
from craft_jax.model.losses import token_losses
from craft_jax.model.protocol import Model
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint, metric_table
from craft_jax.runtime import distributed
from craft_jax.types import Batch, MetricSums, Params

PREFIXES = {'train': 'train', 'valid': 'val', 'test': 'test'}


def make_eval_step(
  model: Model, vocabulary: Vocabulary
) -> Callable[[Params, Batch], MetricSums]:
  """Creates the pure evaluation step, `(params, batch) -> metric sums`.

  The sums are those of `token_sums`, `text_sums` and `breakdown_sums` of
  `inference.metrics`.
  """
  class_V = classes_of(vocabulary).astype(np.int32)
  chars_V, bytes_V = sizes_of(vocabulary)

  def eval_step(params, batch):
    logits_BTV = model.apply(params, batch.x_BT, batch.segment_BT, None)
    loss_BT, nll_BT, correct_BT = token_losses(logits_BTV, batch.y_BT)
    weight_BT = batch.weight_BT
    return (
      metrics.token_sums(loss_BT, nll_BT, correct_BT, weight_BT)
      | metrics.text_sums(
        batch.y_BT, weight_BT, jnp.asarray(chars_V), jnp.asarray(bytes_V)
      )
      | metrics.breakdown_sums(
        nll_BT, correct_BT, batch.y_BT, weight_BT, jnp.asarray(class_V)
      )
    )

  return eval_step


class Evaluator:
  """Evaluates splits with one compiled step."""

  def __init__(
    self, cfg: Config, model: Model, vocabulary: Vocabulary, mesh: Mesh
  ):
    """Creates an evaluator; compiles and allocates nothing yet.

    Args:
      cfg: settings; `model` and `eval` are used.
      model: the model.
      vocabulary: vocabulary of the splits.
      mesh: devices over which batches are sharded.
    """
    self._cfg = cfg
    self._model = model
    self._pairs: dict[str, list[Pair]] = {}  # of a split, by its name
    self._vocabulary = vocabulary
    self._mesh = mesh
    self._sharding = mesh_lib.batch_sharding(mesh)
    self._step = jax.jit(
      make_eval_step(model, vocabulary),
      out_shardings=mesh_lib.replicated(mesh),
    )
    self._compiled: Any = None

  def compile(self, params: Params) -> bool:
    """Compiles the step, unless it is compiled; returns True."""
    if self._compiled is None:
      nothing = np.zeros(2, self._vocabulary.dtype)
      batch = self._put(next(iter(self._batches(nothing, 0))))
      with jax.set_mesh(self._mesh):
        self._compiled = self._step.lower(params, batch).compile()
      distributed.wait_for_all()
    return True

  def __call__(
    self,
    params: Params,
    split: Split,
    withheld: str = '',
    *,
    prefix: str = 'val',
    stride: int | None = None,
    task_rows: int | None = 0,
    intervals: bool = False,
    tick: Callable[[], Any] = lambda: None,
  ) -> dict[str, Any]:
    """Evaluates a split; returns its metrics with prefixed names.

    `{prefix}_loss` is over non-overlapping windows, which score every token but
    the first. `{prefix}_loss_strided` is over windows that advance by the
    stride, so each token has at least `context - stride` tokens before it.

    Args:
      params: parameters, replicated over the mesh.
      split: the split.
      withheld: why bits per byte are unknown; '' if they are known.
      prefix: prefix of the names.
      stride: overrides `eval.stride`; 0 disables the strided metrics.
      task_rows: of a split of pairs, prompts to complete, at most; None is all.
        See `task_evaluation.figures_of` for the metrics.
      intervals: add the intervals of these metrics.
      tick: called after each batch.
    """
    stride = self._cfg.eval.stride if stride is None else stride
    self.compile(params)
    sums = self._sums(params, split.tokens, 0, tick)
    figures = metrics.summary(sums, withheld)
    if stride:
      sums = self._sums(params, split.tokens, stride, tick)
      strided = metrics.summary(sums, withheld)
      ranking = (key.removeprefix('val_') for key in metric_table.ranking())
      figures |= {
        f'{name}_strided': strided[name] for name in ranking if name in strided
      }
      figures['stride'] = stride
    if task_rows != 0 and self._cfg.data.format == 'pairs':
      figures |= self._task(params, split, task_rows, intervals, tick)
    return {f'{prefix}_{name}': value for name, value in figures.items()}

  def _task(self, params, split, rows, intervals, tick) -> dict[str, Any]:
    """Metrics of the completions of prompts, by process 0 alone."""
    if split.name not in self._pairs:
      self._pairs[split.name] = rows_of(split.tokens, self._vocabulary)
    pairs = task_evaluation.subset(self._pairs[split.name], rows)
    whole = mesh_lib.whole_on_first(params)
    # A signal ends all processes at the same step, not one of them here.
    tick = (lambda: None) if distributed.several() else tick
    return distributed.told_by_first(
      lambda: task_evaluation.figures_of(
        self._model, whole, self._vocabulary, pairs,
        slots=self._cfg.eval.batch_size, intervals=intervals,
        edits=rows is None, tick=tick,
      )
    )  # fmt: skip

  def _sums(self, params, tokens, stride, tick) -> dict[str, Any]:
    """Sums over all batches in float64, fetched one batch late."""
    totals: dict[str, Any] = {}
    before: MetricSums = {}
    for batch in self._batches(tokens, stride):
      before, sums = self._compiled(params, self._put(batch)), before
      totals = metrics.add_sums(totals, mesh_lib.fetched(sums))
      tick()
    return metrics.add_sums(totals, mesh_lib.fetched(before))

  def _batches(self, tokens, stride) -> Iterator[Batch]:
    return eval_batches(
      tokens,
      self._vocabulary,
      context=self._cfg.model.context,
      batch_size=self._cfg.eval.batch_size,
      stride=stride,
      documents=self._cfg.model.documents,
      pairs=self._cfg.data.format == 'pairs',
    )

  def _put(self, batch: Batch) -> Batch:
    return mesh_lib.put_batch(batch, self._sharding)


def evaluate_run(
  workdir: epath.PathLike,
  step: checkpoint.Which = 'latest',
  *,
  split: str = 'valid',
  stride: int | None = None,
  ema: bool = True,
  weights: str = 'auto',
  path: str | None = None,
  adaptation: dynamic_evaluation.Adaptation | None = None,
  cache: bool = False,
  task_rows: int | None = None,
) -> dict[str, Any]:
  """Evaluates a checkpoint on a split of its own corpus.

  Args:
    workdir: run directory.
    step: a step, 'latest' or 'best'.
    split: 'train', 'valid' or 'test'.
    stride: tokens between windows of the strided metrics; 0 disables them,
      None is `eval.stride`.
    ema: use the EMA of the parameters if the run has one.
    weights: 'auto' or 'int8', which quantizes the matrices.
    path: path of the text if it has moved from the run's `data.path`.
    adaptation: also evaluate by dynamic evaluation.
    cache: also evaluate with n-gram counts mixed in.
    task_rows: of a run of pairs, prompts to complete, at most; None is all.

  Returns:
    The metrics of `metrics.summary`, of `adaptive_figures` and, of a run of
    pairs, of `task_evaluation.figures_of` with intervals, prefixed by `val`,
    `train` or `test`, and `step`, `split`, `context`.

  Raises:
    UserError: there is no checkpoint or no such split, or the corpus differs
      from that of the run.
  """
  if jax.distributed.is_initialized():
    mesh_lib.set_cpu_devices(1)
  asked = (step, split, stride, ema, weights, adaptation, cache, task_rows)
  distributed.check_program('the command', repr(asked))
  step = distributed.told_by_first(
    lambda: checkpoint.step_to_use(workdir, step)
  )
  cfg = checkpoint.open_meta(workdir, step).config
  if path is not None:
    data = dataclasses.replace(cfg.data, path=path)
    cfg = dataclasses.replace(cfg, data=data)
  stride = cfg.eval.stride if stride is None else stride
  checked_stride(stride, cfg.model.context)
  if cfg.data.format == 'pairs' and (stride or adaptation or cache):
    raise UserError(
      f'the run in {workdir} learnt pairs, which are scored once, each alone; '
      'leave out --stride, --dynamic and --cache'
    )
  mesh = mesh_lib.data_mesh(cfg.eval.batch_size)

  def read() -> tuple[Trained, Corpus, Split]:
    trained = load_model(workdir, step, ema, weights)
    corpus = open_corpus(cfg, trained.vocabulary)
    return trained, corpus, _part(corpus, split, trained.meta.fingerprint)

  trained, corpus, part = distributed.opened_by_all(read)
  prefix = PREFIXES[split]
  figures = Evaluator(cfg, trained.model, trained.vocabulary, mesh)(
    mesh_lib.put_batch(trained.params, mesh_lib.replicated(mesh)),
    part,
    corpus.withheld,
    prefix=prefix,
    stride=stride,
    task_rows=task_rows,
    intervals=True,
  )
  if adaptation is not None or cache:
    adaptive = adaptive_figures(
      trained, part, corpus.withheld, stride, adaptation, cache
    )
    figures |= {f'{prefix}_{name}': v for name, v in adaptive.items()}
  return figures | {
    'step': trained.meta.step,
    'split': split,
    'context': cfg.model.context,
  }


def adaptive_figures(
  trained: Trained,
  split: Split,
  withheld: str,
  stride: int,
  adaptation: dynamic_evaluation.Adaptation | None,
  cache: bool,
) -> dict[str, Any]:
  """Evaluates a model that adapts to the split as it reads it.

  Args:
    trained: the model; its parameters stay as they are.
    split: tokens.
    withheld: why bits per byte cannot be given.
    stride: tokens by which windows advance; 0 is the context.
    adaptation: see `dynamic.adaptive_nats`, also for the names.
    cache: see there.

  Returns:
    `loss_dynamic`, `bpc_dynamic`, `bpb_dynamic`, `perplexity_dynamic`, the same
    with `dynamic_cache` and `dynamic_both` if requested, and `stride_dynamic`.
  """
  model, vocabulary = trained.model, trained.vocabulary
  stride = checked_stride(stride, model.context)
  static = None
  if cache:
    static = score.token_nats(
      model, trained.params, split.tokens, stride=stride,
      separator=vocabulary.bos,
    )  # fmt: skip
  target = split.tokens[1:]
  counted = target != vocabulary.bos
  chars_V, bytes_V = sizes_of(vocabulary)
  found: dict[str, Any] = {'stride_dynamic': stride}
  for name, nats in dynamic_evaluation.adaptive_nats(
    model, trained.params, vocabulary, split.tokens, static, stride=stride,
    adaptation=adaptation, cache=cache,
  ).items():  # fmt: skip
    sums = {
      'nll': nats[counted].sum(dtype=np.float64),
      'count': counted.sum(),
      'chars': chars_V[target].sum(),
      'bytes': bytes_V[target].sum(),
    }
    summary = metrics.summary(sums, withheld)
    found |= {
      f'{key}_{name}': summary[key] for key in dynamic_evaluation.FIGURES
    }
  return found


def _part(corpus: Corpus, split: str, fingerprint: str) -> Split:
  """The split of a corpus, which has to be that of the training run."""
  if corpus.fingerprint != fingerprint:
    raise UserError(
      'the corpus is not that of the run: its fingerprint is '
      f'{corpus.fingerprint[:12]}, not {fingerprint[:12]}; give the old text '
      'with --path, or use the Python that trained on its standard library'
    )
  part = {s.name: s for s in corpus.splits}.get(split)
  if part is None:
    raise UserError(
      f'the corpus of the run has no {split} split; it has '
      f'{", ".join(s.name for s in corpus.splits)}'
    )
  return part
