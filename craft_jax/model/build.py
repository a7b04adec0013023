"""From settings to a model."""

from collections.abc import Callable

from craft_jax.config.settings import Model as ModelConfig
from craft_jax.errors import UserError, hint
from craft_jax.model.precision import Platform, Policy, resolve_precision
from craft_jax.model.protocol import Model
from craft_jax.model.transformer import Decoder

Build = Callable[[ModelConfig, int, Policy, str], Model]

# What `model.architecture` names.
ARCHITECTURES: dict[str, Build] = {'transformer': Decoder}


def build(
  cfg: ModelConfig,
  vocabulary_size: int,
  platform: Platform,
  cache: str = 'auto',
) -> Model:
  """The model of the settings.

  Args:
    cfg: of the run.
    vocabulary_size: V.
    platform: of the devices that it will run on.
    cache: how keys and values are kept, one of `settings.CACHES`; 'auto' is
      what changes no number and is fastest.

  Raises:
    UserError: no such architecture.
  """
  make = ARCHITECTURES.get(cfg.architecture)
  if make is None:
    raise UserError(
      f'model.architecture={cfg.architecture!r} must be one of '
      f'{", ".join(ARCHITECTURES)}{hint(cfg.architecture, ARCHITECTURES)}'
    )
  policy = Policy(resolve_precision(cfg.precision, platform), platform)
  return make(cfg, vocabulary_size, policy, cache)
