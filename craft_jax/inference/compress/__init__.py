"""Lossless compression by a trained model and an entropy coder."""
