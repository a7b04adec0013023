"""Language models over characters and bytes in JAX."""

from typing import TYPE_CHECKING, Any

from craft_jax.runtime.version import __version__

if TYPE_CHECKING:
  from craft_jax.inference.language_model import LanguageModel, load

__all__ = ['LanguageModel', '__version__', 'load']


def __getattr__(name: str) -> Any:
  """Imports `LanguageModel` and `load`, which need JAX, on first access."""
  if name not in ('LanguageModel', 'load'):
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from craft_jax.inference import language_model

  return getattr(language_model, name)


def __dir__() -> list[str]:
  """All names of the module, those imported lazily included."""
  return sorted({*globals(), *__all__})
