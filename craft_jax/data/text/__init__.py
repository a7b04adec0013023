"""Text to tokens and back. Nothing here imports JAX."""
