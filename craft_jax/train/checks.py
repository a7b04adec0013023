"""What stops a run at its start: set-up raises the first, preflight lists all.

A check returns what it found, in words, or raises a `UserError` with
the remedy.
"""

import dataclasses
import os

from etils import epath

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.data.corpus import Corpus
from craft_jax.data.index import check_samples
from craft_jax.errors import UserError
from craft_jax.model.precision import Platform, resolve_precision
from craft_jax.runs.checkpoint import Meta
from craft_jax.train.resume import resumed


def with_precision(
  cfg: Config, platform: Platform, before: Meta | None = None
) -> Config:
  """The config with `model.precision` decided: once, for the whole run."""
  precision = cfg.model.precision
  if precision == 'auto' and before:
    precision = before.config.model.precision
  precision = resolve_precision(precision, platform)
  model = dataclasses.replace(cfg.model, precision=precision)
  return dataclasses.replace(cfg, model=model)


def continued(cfg: Config, before: Meta, workdir: epath.PathLike) -> Config:
  """The config with which a run goes on from its last checkpoint.

  A precision that is still `auto` is that of the run.

  Raises:
    UserError: a setting that identifies the run has changed; see
      `resume.resumed`.
  """
  old, precision = before.config, cfg.model.precision
  if precision == 'auto':
    precision = old.model.precision
  model = dataclasses.replace(cfg.model, precision=precision)
  new = dataclasses.replace(cfg, model=model)
  return resumed(old, new, before.step, os.fspath(workdir))


def check_same_text(
  corpus: Corpus, before: Meta, workdir: epath.PathLike
) -> None:
  """Raises `UserError` if a run that goes on would read another text."""
  if before.fingerprint != corpus.fingerprint:
    raise UserError(
      f'the corpus is not the one that {workdir} was started with: its '
      f'fingerprint is {corpus.fingerprint[:12]}, not '
      f'{before.fingerprint[:12]}; give the old text, or another --workdir'
    )


def _splits(cfg: Config, corpus: Corpus) -> str:
  sizes = {split.name: len(split.tokens) for split in corpus.splits}
  config_lib.check_corpus(cfg, sizes)
  return ', '.join(f'{name} {n:,}' for name, n in sizes.items()) + ' tokens'


def _steps(cfg: Config, corpus: Corpus) -> str:
  train, context = cfg.train, cfg.model.context
  num_tokens = len(corpus.train.tokens)
  check_samples(train.steps, train.batch_size, num_tokens, context)
  read = train.steps * train.batch_size * context
  return (
    f'{train.steps:,} of {train.batch_size} x {context} tokens read the '
    f'training text {read / num_tokens:.3g} times'
  )


def _prompt(cfg: Config, corpus: Corpus) -> str:
  """Refuses an impossible prompt now, not after training."""
  try:
    corpus.vocabulary.encode(cfg.log.sample_prompt)
  except UserError as e:
    raise UserError(f'log.sample_prompt: {e}') from e
  return 'the vocabulary has its characters'


OF_CORPUS = {'splits': _splits, 'steps': _steps, 'sample prompt': _prompt}
