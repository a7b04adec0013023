"""Scaling laws from finished runs."""
