"""Text cleaning, UTF-8 and vocabularies; does not import JAX."""
