"""Accelerators by name: what their makers say they do.

All figures are peaks of public data sheets, not measurements. Links are
counted in ONE direction: what a device can send per second, while it receives
as much. Makers often print the sum of both directions: 900 GB/s of NVLink are
450 here, 400 GB/s of bidirectional ICI are 200.
"""

import dataclasses

from craft_jax.errors import UserError, hint
from craft_jax.inference.metrics import peak_flops

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator, as JAX counts devices.

  Attributes:
    kind: JAX's `device_kind`, which names its peak in `metrics.peak_flops`.
    platform: JAX's platform.
    memory: bytes.
    memory_bandwidth: bytes/s between the chip and its memory.
    fast: bytes/s one device sends within its domain, one direction, all of its
      links together (NVLink, ICI; PCIe where there is neither).
    domain: devices that the fast links join.
    slow: bytes/s one device sends to other domains, one direction: its share
      of the node's or pod's network.
    torus: dims of the torus of fast links; 0 is a switch.
    closed_from: devices from which the torus closes into rings; in a smaller
      slice the ends are open, and a ring has half the speed.
  """

  kind: str
  platform: str
  memory: float
  memory_bandwidth: float
  fast: float
  domain: int
  slow: float
  torus: int = 0
  closed_from: int = 0

  @property
  def peak(self) -> float:
    """Dense bfloat16 FLOP/s."""
    peak, source = peak_flops(self.kind, self.platform)
    assert peak is not None, source
    return peak


DEVICES: dict[str, Device] = {
  # NVIDIA A100 data sheet (SXM): 40 GB at 1,555 GB/s and 80 GB at 2,039 GB/s,
  # NVLink 600 GB/s both ways. DGX A100: a 200 Gb/s adapter per GPU.
  'a100-40gb': Device(
    'NVIDIA A100-SXM4-40GB', 'gpu', 40e9, 1555e9, 300e9, 8, 25e9
  ),
  'a100-80gb': Device(
    'NVIDIA A100-SXM4-80GB', 'gpu', 80e9, 2039e9, 300e9, 8, 25e9
  ),
  # NVIDIA H100 data sheet (SXM): 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways.
  # DGX H100: a 400 Gb/s ConnectX-7 per GPU.
  'h100-80gb': Device(
    'NVIDIA H100 80GB HBM3', 'gpu', 80e9, 3350e9, 450e9, 8, 50e9
  ),
  # NVIDIA H200 data sheet (SXM): 141 GB, 4.8 TB/s, the rest as the H100.
  'h200-141gb': Device('NVIDIA H200', 'gpu', 141e9, 4800e9, 450e9, 8, 50e9),
  # NVIDIA DGX B200 data sheet: 1,440 GB and 64 TB/s over 8 GPUs, NVLink
  # 14.4 TB/s both ways over 8, a 400 Gb/s ConnectX-7 per GPU.
  'b200-180gb': Device('NVIDIA B200', 'gpu', 180e9, 8000e9, 900e9, 8, 50e9),
  # NVIDIA L4 data sheet: 24 GB, 300 GB/s, PCIe Gen4 x16, 64 GB/s both ways.
  # Google Cloud g2-standard-96: 8 of them, 100 Gb/s per machine.
  'l4': Device('NVIDIA L4', 'gpu', 24e9, 300e9, 32e9, 8, 12.5e9 / 8),
  # Cloud TPU documentation, a page per version. ICI per chip: 2,400, 1,600,
  # 4,800 and 3,200 Gb/s one way (300, 200, 600 and 400 GB/s). Pods: 4,096,
  # 256, 6,144 (the largest job) and 256 chips. Data-center network: 6.4 and
  # 25.6 Tb/s per 256 chips of v5e and v6e, 50 Gb/s per chip of v5p; v4 by
  # "How to Scale Your Model" (jax-ml.github.io/scaling-book), 6.25 GB/s.
  'v4': Device('TPU v4', 'tpu', 32 * _GIB, 1200e9, 300e9, 4096, 6.25e9, 3, 64),
  'v5e': Device('TPU v5e', 'tpu', 16e9, 819e9, 200e9, 256, 3.125e9, 2, 256),
  'v5p': Device(
    'TPU v5p', 'tpu', 95 * _GIB, 2765e9, 600e9, 6144, 6.25e9, 3, 64
  ),
  'v6e': Device('TPU v6e', 'tpu', 32e9, 1600e9, 400e9, 256, 12.5e9, 2, 256),
}


def find_device(name: str) -> Device:
  """The device of a name.

  Raises:
    UserError: no such device; names the nearest.
  """
  if name not in DEVICES:
    raise UserError(
      f'unknown device {name!r}{hint(name.lower(), DEVICES)}; known are '
      + ', '.join(DEVICES)
    )
  return DEVICES[name]
