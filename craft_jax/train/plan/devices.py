"""Accelerators by name: what their makers say of their memory."""

import dataclasses

from craft_jax.errors import UserError, hint

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator, as JAX counts devices.

  Attributes:
    kind: JAX's `device_kind`, which names its peak in `metrics.peak_flops`.
    platform: JAX's platform.
    memory: bytes.
    memory_bandwidth: bytes/s between the chip and its memory.
  """

  kind: str
  platform: str
  memory: float
  memory_bandwidth: float


DEVICES: dict[str, Device] = {
  # NVIDIA's data sheets of the A100, H100 and H200 (SXM), of the DGX B200
  # (1,440 GB and 64 TB/s over 8 GPUs) and of the L4.
  'a100-40gb': Device('NVIDIA A100-SXM4-40GB', 'gpu', 40e9, 1555e9),
  'a100-80gb': Device('NVIDIA A100-SXM4-80GB', 'gpu', 80e9, 2039e9),
  'h100-80gb': Device('NVIDIA H100 80GB HBM3', 'gpu', 80e9, 3350e9),
  'h200-141gb': Device('NVIDIA H200', 'gpu', 141e9, 4800e9),
  'b200-180gb': Device('NVIDIA B200', 'gpu', 180e9, 8000e9),
  'l4': Device('NVIDIA L4', 'gpu', 24e9, 300e9),
  # Cloud TPU documentation, a page per version.
  'v4': Device('TPU v4', 'tpu', 32 * _GIB, 1200e9),
  'v5e': Device('TPU v5e', 'tpu', 16e9, 819e9),
  'v5p': Device('TPU v5p', 'tpu', 95 * _GIB, 2765e9),
  'v6e': Device('TPU v6e', 'tpu', 32e9, 1600e9),
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
