"""Profiling of a training step: trace, operations, roofline, bottleneck."""
