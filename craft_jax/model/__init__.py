"""Models: `build(cfg)` gives the four functions everything else uses."""

from craft_jax.model.build import build, flops_per_symbol, param_count

__all__ = ['build', 'flops_per_symbol', 'param_count']
