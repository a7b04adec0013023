"""Sampling: settings, one choice, the decode loop, text that streams."""
