"""Builds the model that `model.architecture` names."""

from collections.abc import Callable

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.errors import UserError, hint
from craft_jax.model.precision import Platform, Policy, resolve_precision
from craft_jax.model.protocol import Model
from craft_jax.model.transformer import Decoder

Build = Callable[[ModelConfig, int, Policy, str], Model]

# Values of `model.architecture`.
ARCHITECTURES: dict[str, Build] = {'transformer': Decoder}


def build(
  cfg: ModelConfig,
  vocabulary_size: int,
  platform: Platform,
  cache: str = 'auto',
) -> Model:
  """Builds a model from its settings.

  Args:
    cfg: model settings.
    vocabulary_size: number of tokens in the vocabulary.
    platform: platform of the devices that the model will run on.
    cache: dtype of the KV cache, one of `settings.CACHES`; 'auto' is the
      fastest that leaves the results unchanged.

  Raises:
    UserError: the architecture is unknown.
  """
  make = ARCHITECTURES.get(cfg.architecture)
  if make is None:
    raise UserError(
      f'model.architecture={cfg.architecture!r} must be one of '
      f'{", ".join(ARCHITECTURES)}{hint(cfg.architecture, ARCHITECTURES)}'
    )
  policy = Policy(resolve_precision(cfg.precision, platform), platform)
  return make(cfg, vocabulary_size, policy, cache)
