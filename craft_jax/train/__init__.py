"""Training: the state, the pure step, and the loop around it."""
