"""tinyshakespeare on two CPU cores, with nanoGPT's CPU model.

  craft train --config=shakespeare_cpu --workdir=runs/shakespeare_cpu
  craft train --config=shakespeare_cpu:minutes --workdir=runs/minutes
  craft train --config=shakespeare_cpu:seconds --workdir=runs/seconds

The first has nanoGPT's budget as well: 4 layers, width 128, context 64, 12
sequences a step, 2,000 steps, character vocabulary, first 90 % for training.
What differs is the recipe: RoPE, RMSNorm, QK-norm, ReLU^2, zero-initialised
outputs, untied capped head, bigrams, Muon. `minutes` asks what two minutes can
do instead: twice the context, an evaluation whose windows overlap. `seconds` is
the shortest way to nanoGPT's 1.88: tables of 2- to 4-grams learn at a high rate
what a count model knows, in 160 steps.

Data: tinyshakespeare (downloaded once, sha256 checked), 1,003,854 characters
for training and 111,540 for validation. Offline:
--config.data.path=tinyshakespeare.txt
Result: 1.5764 and 1.5783 nats per character on the whole validation split
(seeds 0 and 1), static weights, windows of 64 side by side. nanoGPT: 1.886.
`minutes`: 1.4774 (seed 0), windows of 128 every 32 characters, 1.4991 side by
side; a count model (Kneser-Ney of order 6) has 1.5165, nanoGPT's GPU recipe
1.4697.
`seconds`: 1.8365, 1.8016 and 1.8415 (seeds 0 to 2), windows as the first.
Time: 84 s from start to finish; `minutes` 107 s.
Device: 2 CPU cores (AMD EPYC with AVX-512-BF16).
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.errors import UserError, hint


def get_config(variant: str = 'budget') -> ConfigDict:
  """The settings of the run; a variant is what is limited."""
  if variant not in _VARIANTS:
    raise UserError(
      f'unknown variant {variant!r}{hint(variant, _VARIANTS)}; there are '
      + ' and '.join(_VARIANTS)
    )
  config = default_config()
  config.text.vocabulary = 'char'
  config.data.source = 'shakespeare'
  config.model.context = 64
  config.model.width = 128
  config.model.depth = 4
  config.model.num_heads = 4
  config.model.ngrams = 2
  config.train.steps = 2000
  config.train.batch_size = 12
  config.eval.batch_size = 128
  _VARIANTS[variant](config)
  return config


def _budget(config: ConfigDict) -> None:
  """Steps, as nanoGPT's."""


def _minutes(config: ConfigDict) -> None:
  """Two minutes of wall time on two cores."""
  config.model.context = 128
  config.train.steps = 1700
  config.eval.every = 0
  config.eval.stride = 32


def _seconds(config: ConfigDict) -> None:
  """A validation loss below 1.88 as soon as can be."""
  config.model.ngrams = 4
  config.optim.learning_rate = 2e-2
  config.optim.schedule = 'linear'
  config.optim.warmup_steps = 10
  config.train.steps = 160
  config.eval.every = 0


_VARIANTS = {'budget': _budget, 'minutes': _minutes, 'seconds': _seconds}
