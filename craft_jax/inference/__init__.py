"""Use of trained models: evaluation, scoring, sampling and compression."""
