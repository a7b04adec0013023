"""Text to symbols and back. Nothing here imports JAX."""
