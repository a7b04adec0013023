"""Starting a new run from the weights of another one."""

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from etils import epath

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.data.prepare import open_corpus
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.load import load_model
from craft_jax.model.protocol import Model
from craft_jax.model.sharding.rules import OUT, names_of, rule_of
from craft_jax.runs import checkpoint
from craft_jax.runs.checkpoint import reader, staging
from craft_jax.runtime import files, keys
from craft_jax.train.state import State
from craft_jax.types import Params

_WHICH = ('latest', 'best', 'ema', 'raw')
# What of `model` may differ from the parent: it changes no parameter's meaning.
_FREE = (
  'context', 'rope_base', 'dropout', 'documents', 'unroll', 'remat',
  'precision', 'depth', 'zero_init',
)  # fmt: skip


class Source(NamedTuple):
  """Which weights of which run.

  Attributes:
    run: its folder.
    step: a number, 'latest' or 'best'.
    ema: whether to take the averaged weights where the run has some.
  """

  run: str
  step: str
  ema: bool


@dataclasses.dataclass(frozen=True)
class Parent:
  """The checkpoint that a new run starts from.

  Attributes:
    source: what was asked for.
    step: of the checkpoint.
    meta: its config and vocabulary.
  """

  source: Source
  step: int
  meta: checkpoint.Meta

  @property
  def facts(self) -> dict[str, Any]:
    """The parent as `metadata.json` of its child tells of it."""
    return {
      'run': files.absolute(self.source.run),
      'step': self.step,
      'ema': self.source.ema and self.meta.config.train.ema > 0,
      'corpus_fingerprint': self.meta.fingerprint,
    }


def parse(spec: str) -> Source:
  """`RUN[@STEP|best|latest|ema|raw]`: a run, and which of its weights.

  Raises:
    UserError: no run is named.
  """
  run, at, which = spec.rpartition('@')
  if not at or not (which in _WHICH or which.isdecimal()):
    run, which = spec, 'latest'
  if not run:
    raise UserError(f'--from={spec} names no run; give RUN or RUN@STEP')
  step = 'latest' if which in ('ema', 'raw') else which
  return Source(os.path.expanduser(run), step, which != 'raw')


def open_parent(spec: str) -> Parent:
  """The checkpoint that `train.init_from` names.

  Raises:
    UserError: no such run or step, or a damaged one.
  """
  source = parse(spec)
  if not epath.Path(source.run).is_dir():
    raise UserError(f'--from: no run {source.run}; craft runs list shows those')
  step = checkpoint.step_to_use(source.run, source.step)
  meta = checkpoint.open_meta(source.run, step)
  if spec.endswith('@ema') and not meta.config.train.ema:
    raise UserError(f'{source.run} keeps no average (train.ema=0); leave @ema')
  return Parent(source, step, meta)


def grown_vocabulary(parent: Parent, cfg: Config) -> Vocabulary:
  """The parent's vocabulary, and after its tokens the new ones of the text.

  Args:
    parent: checkpoint that the run starts from.
    cfg: settings of the new run.

  Raises:
    UserError: one run reads bytes and the other one characters.
  """
  old = parent.meta.vocabulary
  if cfg.text.vocabulary != old.kind:
    raise UserError(
      f'{parent.source.run} was trained on {_UNIT[old.kind]}, and '
      f'text.vocabulary={cfg.text.vocabulary}: their tokens mean different '
      f'things; use --config.text.vocabulary={old.kind}'
    )
  if old.kind == 'byte':
    return old
  known = set(old.chars)
  found = open_corpus(cfg).vocabulary.chars
  new = ''.join(char for char in found if char not in known)
  return Vocabulary('char', old.chars + new, cfg.text.unknown)


_UNIT = {'byte': 'bytes', 'char': 'characters'}


def check(parent: Parent, cfg: Config, vocabulary: Vocabulary) -> None:
  """Refuses a model that the parent's weights have no exact start for.

  Args:
    parent: checkpoint that the run starts from.
    cfg: settings of the new run.
    vocabulary: vocabulary of the new run.

  Raises:
    UserError: with all the settings that differ.
  """
  old, new = parent.meta.config.model, cfg.model
  before, after = config_lib.flatten(old), config_lib.flatten(new)
  differing = [
    f'model.{name}: {before[name]!r} -> {after[name]!r}'
    for name in before
    if before[name] != after[name] and name not in _FREE
  ]
  if new.depth < old.depth:
    differing.append(f'model.depth: {old.depth} -> {new.depth} (fewer layers)')
  if new.position == 'learned' and new.context != old.context:
    differing.append(
      f'model.context: {old.context} -> {new.context} (learned positions)'
    )
  if new.ngrams > 1 and vocabulary.size != parent.meta.vocabulary.size:
    differing.append(
      'the vocabulary, by which the n-gram tables are hashed (model.ngrams)'
    )
  if cfg.train.keep_optimizer:
    names = parent.meta.config.optim.name, cfg.optim.name
    if names[0] != names[1]:
      differing.append(
        f'optim.name: {names[0]} -> {names[1]} (train.keep_optimizer)'
      )
    if new.depth != old.depth or vocabulary.size != parent.meta.vocabulary.size:
      differing.append('its parameters have grown (train.keep_optimizer)')
  if differing:
    raise UserError(
      f'the weights of {parent.source.run} do not fit: {"; ".join(differing)}. '
      'Leave --config out to take its model, and change these settings back'
    )


def notes(parent: Parent, cfg: Config, vocabulary: Vocabulary) -> list[str]:
  """What the new run takes over and what is new, a line each."""
  old = parent.meta
  found = [
    f'starts from {parent.source.run} at step {parent.step}'
    + (', averaged weights' if parent.facts['ema'] else '')
  ]
  if added := vocabulary.chars[len(old.vocabulary.chars) :]:
    shown = ''.join(added[:40]) + ('...' if len(added) > 40 else '')
    found.append(
      f'{len(added)} new characters, which start at the mean of the others: '
      f'{shown!r}'
    )
  if more := cfg.model.depth - old.config.model.depth:
    found.append(f'{more} new layers, which change nothing at first')
  if cfg.model.context > old.config.model.context:
    found.append(
      f'a context of {cfg.model.context}, {old.config.model.context} before'
      + (
        f'; rope_base {old.config.model.rope_base:g} -> {cfg.model.rope_base:g}'
        if cfg.model.position == 'rope'
        else ''
      )
    )
  return found


def start(
  parent: Parent | None,
  cfg: Config,
  model: Model,
  vocabulary: Vocabulary,
  abstract: State,
) -> tuple[Params, Any]:
  """Parameters and, with `train.keep_optimizer`, optimizer state to start from.

  Args:
    parent: checked by `check`; None opens the one that the config names.
    cfg: settings of the new run.
    model: model of the new run.
    vocabulary: vocabulary of the new run.
    abstract: shapes and shardings of the new run's state.

  Returns:
    The parameters on the mesh, and the optimizer state or None.
  """
  parent = parent or open_parent(cfg.train.init_from)
  fresh = abstract.params
  if cfg.model.depth > parent.meta.config.model.depth:
    drawn = jax.jit(model.init)(keys.from_seed(cfg.seed))
    fresh = jax.tree.map(np.asarray, drawn)
  params = jax.tree.map(
    lambda array, like: jax.make_array_from_callback(
      array.shape, like.sharding, array.__getitem__
    ),
    start_params(parent, model, vocabulary, fresh),
    abstract.params,
  )
  keep = cfg.train.keep_optimizer
  return params, optimizer_state(parent, abstract.opt_state) if keep else None


def start_params(
  parent: Parent, model: Model, vocabulary: Vocabulary, fresh: Params
) -> Params:
  """The parent's parameters as the new model has them.

  Tokens keep their rows wherever their ids went. Rows of new characters are
  the mean of the old ones. New layers are those of `fresh` with zeros where
  they add to the residual stream, so that they change nothing.

  Args:
    parent: checkpoint to start from, which `check` let pass.
    model: model of the new run.
    vocabulary: vocabulary of the new run.
    fresh: the new model's parameters, initialized if it has more layers;
      otherwise their shapes will do.

  Returns:
    NumPy arrays, float32.
  """
  trained = load_model(
    parent.source.run, parent.step, ema=parent.source.ema, warn=lambda _: None
  )
  rows = _rows(trained.vocabulary, vocabulary)
  sizes = trained.vocabulary.size, vocabulary.size

  def take(path: tuple[Any, ...], new: Any, old: jax.Array):
    names = names_of(path)
    kept = np.asarray(old)
    for axis, size in enumerate(kept.shape):
      if new.shape[axis] != size and (size, new.shape[axis]) == sizes:
        kept = _regrown(kept, rows, axis, trained.vocabulary.num_text_tokens)
    if kept.shape == new.shape:
      return kept
    grown = np.array(new)
    grown[: len(kept)] = kept
    if rule_of(names, model.sharding_rules) == OUT:
      grown[len(kept) :] = 0
    return grown

  return jax.tree_util.tree_map_with_path(take, fresh, trained.params)


def optimizer_state(parent: Parent, abstract: Any) -> Any:
  """The parent's optimizer state; schedules count from 0 again.

  Args:
    parent: checkpoint that the run starts from.
    abstract: shapes and shardings of the new run's state.
  """
  path = reader.step_path(parent.source.run, parent.step) / 'state'
  path = staging.local(path.parent) / 'state'
  tree = {'opt_state': abstract}
  state = reader.restore_tree(path, tree, partial=True)['opt_state']
  return jax.tree.map(
    lambda part: (
      part._replace(count=part.count * 0) if _is_schedule(part) else part
    ),
    state,
    is_leaf=_is_schedule,
  )


def _is_schedule(part: Any) -> bool:
  return isinstance(part, optax.ScaleByScheduleState)


def _rows(old: Vocabulary, new: Vocabulary) -> np.ndarray:
  """The old id of each new one, -1 for what is new; int `[V]`."""
  specials = np.arange(old.num_text_tokens, old.size)
  added = np.full(new.num_text_tokens - old.num_text_tokens, -1)
  return np.concatenate([np.arange(old.num_text_tokens), added, specials])


def _regrown(
  table: np.ndarray, rows: np.ndarray, axis: int, num_text: int
) -> np.ndarray:
  """The given rows of a table along an axis, the mean in place of a -1."""
  known = np.take(table, np.arange(num_text), axis)
  mean = known.mean(axis, keepdims=True)
  new = (rows < 0).reshape([-1 if a == axis else 1 for a in range(table.ndim)])
  return np.where(new, mean, np.take(table, np.maximum(rows, 0), axis))
