"""Devices: how many, in what mesh, and where each array lives."""
