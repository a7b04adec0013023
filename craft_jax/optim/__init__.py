"""Schedules, masks and optimizers."""
