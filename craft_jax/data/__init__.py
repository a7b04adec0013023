"""Text from its source to batches: sources, splits, token arrays, windows."""
