"""Sizes at which sending takes as long as computing.

With P parameters, S symbols per device, width D, R = peak FLOP/s times the
utilisation and W bytes/s, in the limit of many devices and without attention's
own products:

  data or fsdp  8 P / W      against  6 P S / R             -> S = 4/3 R / W
  tensor = t    48 S D (t-1)/t / W  against  72 D^2 S / t / R
                                           -> D = 2/3 (t - 1) R / W

8 bytes per parameter: a float32 all-reduce of the gradients sends 2 x 4, and
fsdp 4 for the gradients and 2 x 2 for rounded kernels. 48 bytes per layer and
entry of the stream: six float32 all-reduces (without a gate or remat=block).
"""

from craft_jax.train.plan.devices import Device
from craft_jax.train.plan.layout import Layout, span
from craft_jax.train.plan.step import UTILISATION


def critical_symbols(
  device: Device, utilisation: float = UTILISATION, domains: int = 1
) -> float:
  """Symbols per device and step from which `data` and `fsdp` cost less.

  Args:
    device: fills its domain of fast links.
    utilisation: share of the peak.
    domains: 1, or more, over which each device sends its share of the sums.
  """
  inside = span(device, Layout(1, device.domain), 'fsdp').fast
  seconds = 1 / inside
  if domains > 1:
    seconds += (domains - 1) / domains / (device.domain * device.slow)
  return 4 / 3 * device.peak * utilisation * seconds


def critical_width(
  device: Device, tensor: int, utilisation: float = UTILISATION
) -> float:
  """Width from which `tensor` sends for less time than it computes.

  Args:
    device: fills its domain of fast links; the rest of it is on `fsdp`.
    tensor: devices on the axis.
    utilisation: share of the peak.
  """
  layout = Layout(1, max(1, device.domain // tensor), tensor)
  speed = span(device, layout, 'tensor').fast
  return 2 / 3 * (tensor - 1) * device.peak * utilisation / speed
