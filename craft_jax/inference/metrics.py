"""Metrics: sums and counts on devices, and their summary on the host.

A metric stays a sum and a count until it is printed, so that batches, devices
and hosts can be added. Logarithms are natural (nats) up to `summary`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from craft_jax.data.text.character_classes import CLASS_NAMES
from craft_jax.types import MetricSums

# --- sums --------------------------------------------------------------------


def token_sums(
  loss_BT: Float[Array, 'B T'],
  nll_BT: Float[Array, 'B T'],
  correct_BT: Array,
  weight_BT: Float[Array, 'B T'],
) -> MetricSums:
  """Weighted sums `loss`, `nll` (nats), `correct` and `count`.

  A target of weight 0 adds nothing, even if its loss is not finite.
  """
  return {
    'loss': _weighted(loss_BT, weight_BT).sum(),
    'nll': _weighted(nll_BT, weight_BT).sum(),
    'correct': _weighted(correct_BT, weight_BT).sum(),
    'count': weight_BT.sum(),
  }


def text_sums(
  y_BT: Int[Array, 'B T'],
  weight_BT: Float[Array, 'B T'],
  chars_V: Int[Array, 'V'],
  bytes_V: Int[Array, 'V'],
) -> MetricSums:
  """Weighted sums of the `chars` and `bytes` that each target stands for."""
  return {
    'chars': (chars_V[y_BT] * weight_BT).sum(),
    'bytes': (bytes_V[y_BT] * weight_BT).sum(),
  }


def breakdown_sums(
  nll_BT: Float[Array, 'B T'],
  correct_BT: Array,
  y_BT: Int[Array, 'B T'],
  weight_BT: Float[Array, 'B T'],
  class_V: Int[Array, 'V'],
) -> MetricSums:
  """Sums `[C]` by class of the target and `[T]` by position in the window.

  Keys: `class_nll`, `class_correct`, `class_count`, `position_nll`,
  `position_count`.
  """
  nll_BT = _weighted(nll_BT, weight_BT)
  correct_BT = _weighted(correct_BT, weight_BT)
  # [C, B, T]: masked sums are faster than scatters.
  of_class = class_V[y_BT][None] == jnp.arange(len(CLASS_NAMES))[:, None, None]

  def by_class(x_BT: Array) -> Array:
    return jnp.where(of_class, x_BT[None], 0.0).sum((1, 2))

  return {
    'class_nll': by_class(nll_BT),
    'class_correct': by_class(correct_BT),
    'class_count': by_class(weight_BT),
    'position_nll': nll_BT.sum(0),
    'position_count': weight_BT.sum(0),
  }


def _weighted(x_BT: Array, weight_BT: Array) -> Array:
  return jnp.where(weight_BT > 0, x_BT * weight_BT, 0.0)


def add_sums(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
  """Adds sums on the host in float64; a missing key counts as 0."""
  return {
    key: np.asarray(a.get(key, 0), np.float64)
    + np.asarray(b.get(key, 0), np.float64)
    for key in (*a, *(k for k in b if k not in a))
  }


# --- metrics -----------------------------------------------------------------


def summary(sums: Mapping[str, Any], withheld: str = '') -> dict[str, Any]:
  """Computes metrics from sums.

  Args:
    sums: `nll` and `count`; optionally `correct`, `chars`, `bytes` and the sums
      of `breakdown_sums`.
    withheld: why bits per byte are unknown; '' if they are known.

  Returns:
    `loss` (nats per token, without regularizers), `perplexity` per token, `bpc`
    and `bpb` (bits per character and per byte; None if unknown), `withheld`,
    `count`, and, if their sums are given, `accuracy`, `classes` and
    `positions`.

  Raises:
    ValueError: `count` is 0.
  """
  count = float(sums['count'])
  if count <= 0:
    raise ValueError('no target was counted')
  bits = float(sums['nll']) / math.log(2)
  nats = float(sums['nll']) / count
  figures: dict[str, Any] = {
    'loss': nats,
    'bpc': _ratio(bits, sums.get('chars')),
    'bpb': None if withheld else _ratio(bits, sums.get('bytes')),
    'withheld': withheld,
    'perplexity': math.exp(nats) if nats < 700 else math.inf,
    'count': count,
  }
  if 'correct' in sums:
    figures['accuracy'] = float(sums['correct']) / count
  if 'class_count' in sums:
    figures['classes'] = _by_class(sums, count)
  if 'position_count' in sums:
    figures['positions'] = _by_position(sums)
  return figures


def _ratio(total: float, count: Any) -> float | None:
  return total / float(count) if count is not None and count > 0 else None


def _by_class(
  sums: Mapping[str, Any], count: float
) -> dict[str, dict[str, float]]:
  """Share of targets, nats and accuracy of each class that occurs."""
  rows = zip(
    CLASS_NAMES,
    np.asarray(sums['class_count'], float),
    np.asarray(sums['class_nll'], float),
    np.asarray(sums['class_correct'], float),
    strict=True,
  )
  return {
    name: {'share': n / count, 'nats': nll / n, 'accuracy': correct / n}
    for name, n, nll, correct in rows
    if n > 0
  }


def _by_position(sums: Mapping[str, Any]) -> list[dict[str, float]]:
  """Nats at positions 0, 1, 2-3, 4-7, ... of the window."""
  nll = np.asarray(sums['position_nll'], float)
  count = np.asarray(sums['position_count'], float)
  rows, start = [], 0
  while start < len(nll):
    stop = min(max(1, 2 * start), len(nll))
    n = count[start:stop].sum()
    if n > 0:
      row = {
        'first': start,
        'last': stop - 1,
        'nats': nll[start:stop].sum() / n,
      }
      rows.append(row)
    start = stop
  return rows


def lines(figures: Mapping[str, Any]) -> list[str]:
  """Formats the metrics of `summary`, one line each."""
  text = [f'{figures["loss"]:.4f} nats per token']
  if figures['bpc'] is not None:
    text.append(f'{figures["bpc"]:.4f} bits per character')
  if figures['bpb'] is not None:
    text.append(f'{figures["bpb"]:.4f} bits per byte')
  elif figures['withheld']:
    text.append(f'bits per byte withheld: {figures["withheld"]}')
  text.append(f'{figures["perplexity"]:.3f} perplexity per token')
  if 'accuracy' in figures:
    text.append(f'{figures["accuracy"]:.2%} accuracy')
  for name, row in figures.get('classes', {}).items():
    text.append(
      f'  {name:<12}{row["share"]:7.2%} of tokens  {row["nats"]:.4f} nats  '
      f'{row["accuracy"]:.2%} accuracy'
    )
  for row in figures.get('positions', ()):
    where = f'{row["first"]}-{row["last"]}'
    text.append(f'  position {where:<12} {row["nats"]:.4f} nats')
  return text


# --- utilisation -------------------------------------------------------------

# Peak FLOP/s of one JAX device for dense bfloat16 matmuls with float32
# accumulation. Whole names must match: laptop GPUs, MIG slices and PCIe cards
# differ from devices of a similar name.
_NVIDIA = 'NVIDIA data sheet, dense bfloat16'
_GOOGLE = 'Cloud TPU documentation, bfloat16'
_PEAKS: tuple[tuple[str, float, str], ...] = (
  (r'B200', 2250e12, _NVIDIA),
  (r'(GH200 480GB|H200|H100 80GB HBM3)', 989.4e12, _NVIDIA),
  (r'(H100|H200) NVL', 835.5e12, _NVIDIA),
  (r'H100 PCIe', 756e12, _NVIDIA),
  (r'A100-(SXM4|SXM|PCIE|PCIe)-(40|80)GB', 312e12, _NVIDIA),
  (r'A100 80GB PCIe', 312e12, _NVIDIA),
  (r'L40S', 362e12, _NVIDIA),
  (r'L4', 121e12, _NVIDIA),
  (r'A10', 125e12, _NVIDIA),
  (r'GeForce RTX 4090', 165.2e12, _NVIDIA),
  (r'GeForce RTX 3090', 71e12, _NVIDIA),
  # A JAX device is one of the two cores of a v2 or v3 chip.
  (r'TPU v2', 45e12 / 2, _GOOGLE + ', half a chip'),
  (r'TPU v3', 123e12 / 2, _GOOGLE + ', half a chip'),
  (r'TPU v4', 275e12, _GOOGLE),
  (r'TPU (v5 lite|v5e)', 197e12, _GOOGLE),
  (r'TPU (v5|v5p)', 459e12, _GOOGLE),
  (r'TPU (v6 lite|v6e)', 918e12, _GOOGLE),
)


def peak_flops(device_kind: str, platform: str) -> tuple[float | None, str]:
  """Peak dense bfloat16 FLOP/s of one device, and the source of the number.

  Args:
    device_kind: `jax.devices()[0].device_kind`.
    platform: `jax.devices()[0].platform`.

  Returns:
    `(FLOP/s, source)`, or `(None, 'unknown: ...')` for a CPU, a device that is
    not in the table, or one without bfloat16 matrix units (V100, T4).
  """
  if platform == 'cpu':
    return None, 'unknown: no data sheet gives the peak of a CPU'
  name = re.sub(r'^NVIDIA ', '', device_kind.strip())
  if re.match(r'(Tesla )?(V100|T4)\b', name):
    return None, f'unknown: {device_kind} has no bfloat16 matrix units'
  for pattern, peak, source in _PEAKS:
    if re.fullmatch(pattern, name):
      return peak, f'{source} ({device_kind})'
  return None, f'unknown: {device_kind!r} is not in the table'
