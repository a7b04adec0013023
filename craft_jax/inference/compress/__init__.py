"""Lossless compression: a trained model predicts, an integer coder codes."""
