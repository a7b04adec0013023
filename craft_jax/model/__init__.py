"""Models: `build(cfg, ...)` gives a `Model`, which everything else uses."""

from craft_jax.model.build import build, param_count
from craft_jax.model.precision import platform_of
from craft_jax.model.protocol import Model

__all__ = ['Model', 'build', 'param_count', 'platform_of']
