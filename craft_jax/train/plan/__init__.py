"""What a run needs: by arithmetic, and by what the compiler says of its step.

The arithmetic touches no accelerator and allocates no array: shapes come from
`jax.eval_shape` of the real state, its spread from the real sharding rules.
What it says is an estimate; `compiled` asks XLA about the devices at hand.
"""

from craft_jax.train.plan.devices import DEVICES, find_device
from craft_jax.train.plan.model import Layout, Sketch, sketch

__all__ = ['DEVICES', 'Layout', 'Sketch', 'find_device', 'sketch']
