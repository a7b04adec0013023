"""What a run needs and how long it takes, by arithmetic alone.

Nothing here touches an accelerator or allocates an array: shapes come from
`jax.eval_shape` of the real state, its spread from the real sharding rules,
speeds from data sheets. The figures are estimates, not measurements.
"""

from craft_jax.train.plan.choose import recommend
from craft_jax.train.plan.devices import DEVICES, find_device
from craft_jax.train.plan.layout import Layout
from craft_jax.train.plan.model import Sketch, sketch
from craft_jax.train.plan.step import Plan, as_dict, estimate

__all__ = [
  'DEVICES',
  'Layout',
  'Plan',
  'Sketch',
  'as_dict',
  'estimate',
  'find_device',
  'recommend',
  'sketch',
]
