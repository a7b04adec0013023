"""From text to batches: sources, cleaning, splits, token arrays, windows."""
