"""The device mesh, and the sharding of parameters and activations over it."""
