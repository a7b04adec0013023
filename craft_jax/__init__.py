"""Language models over characters and bytes in JAX."""

__version__ = '0.1.0'
