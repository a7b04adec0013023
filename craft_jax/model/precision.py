"""Matrix products under one precision policy.

`bfloat16`: operands are rounded to bfloat16, products are summed and returned
in float32, in the backward pass too. On a CPU only this form reaches the matrix
units (docs/architecture.md has the measurements).
`float32`: float32 throughout, the reference.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from craft_jax.model.quantize import Quantized, quantized
from craft_jax.model.sharding import activations
from craft_jax.model.sharding.rules import Rule


class Platform(NamedTuple):
  """What a program for some devices depends on.

  Attributes:
    name: JAX's: 'cpu', 'gpu' or 'tpu'.
    bfloat16: they multiply bfloat16 faster than float32.
    fused_attention: cuDNN has kernels of attention for them.
  """

  name: str
  bfloat16: bool
  fused_attention: bool


# What the planner takes devices that are not there for.
PLATFORMS = {
  'cpu': Platform('cpu', bfloat16=True, fused_attention=False),
  'gpu': Platform('gpu', bfloat16=True, fused_attention=True),
  'tpu': Platform('tpu', bfloat16=True, fused_attention=False),
}


def platform_of(device: Any) -> Platform:
  """The platform of a `jax.Device`, or of one of a topology.

  TPUs, NVIDIA GPUs from compute capability 8.0 (Ampere), AMD's, and CPUs with
  AMX or AVX-512-BF16 multiply bfloat16 faster than float32; the rest emulate.
  cuDNN's attention is there from 8.0 on, too.
  """
  if device.platform == 'cpu':
    return Platform('cpu', _cpu_has_bfloat16(), fused_attention=False)
  # Only NVIDIA's devices have such a number.
  number = getattr(device, 'compute_capability', '')
  major, dot, _ = str(number).partition('.')
  nvidia = bool(dot) and major.isdigit()
  recent = nvidia and int(major) >= 8
  return Platform(device.platform, recent or not nvidia, recent)


class Policy(NamedTuple):
  """How products are computed, and on what.

  Attributes:
    precision: 'bfloat16' or 'float32', of the operands; 'int8' within products
      of whole numbers.
    platform: of the devices.
  """

  precision: str
  platform: Platform


def resolve_precision(setting: str, platform: Platform) -> str:
  """'bfloat16' or 'float32' for `model.precision`; 'auto' is the faster."""
  if setting != 'auto':
    return setting
  return 'bfloat16' if platform.bfloat16 else 'float32'


def _cpu_has_bfloat16() -> bool:
  """Whether /proc/cpuinfo lists bfloat16 products; False where it is absent."""
  try:
    with open('/proc/cpuinfo') as f:
      flags = next((line for line in f if line.startswith('flags')), '')
  except OSError:
    return False
  return bool({'amx_bf16', 'avx512_bf16'} & set(flags.split()))


def einsum(
  spec: str,
  a: Float[Array, '...'],
  b: Float[Array, '...'] | Quantized,
  policy: Policy,
) -> Float[Array, '...']:
  """`jnp.einsum` of two float32 arrays under the policy, float32 out.

  On a CPU, bfloat16 products run only if the dims that stay in both operands
  and the output come first, in one order ("BNTH,BNSH->BNTS", not
  "BTNH,BSNH->BNTS"); any other form would compile and then fail.
  """
  if isinstance(b, Quantized):
    return _int8_einsum(spec, a, b, policy)
  if policy.precision == 'float32':
    return product(spec, policy, a, b)
  _check_batch_dims_lead(spec)
  return _bfloat16_einsum(spec, policy, a, b)


def _int8_einsum(spec, a, kernel, policy):
  """A product with a kernel that is kept in int8.

  A CPU would make a floating-point copy of the kernel first, and keep it during
  a loop (docs/log.md). It multiplies whole numbers well, so that there each row
  of `a` is rounded to int8 too. Elsewhere the kernel is converted on its way
  into the product.
  """
  scale_11F = kernel.scale[None, None]
  if policy.platform.name != 'cpu':
    values = round_operand(kernel.values, policy)
    a = round_operand(a, policy)
    return product(spec, policy, a, values) * scale_11F
  rows = quantized(a, axis=-1)
  whole = policy._replace(precision='int8')
  sums = product(spec, whole, rows.values, kernel.values)
  return sums * rows.scale[..., None] * scale_11F


def kernel_einsum(
  spec: str,
  x: Float[Array, '...'],
  kernel: Float[Array, '...'] | Quantized,
  rule: Rule,
  policy: Policy,
  remat: bool = False,
) -> Float[Array, '...']:
  """`einsum` of an activation with a parameter that may be spread over devices.

  Spread over `fsdp`, the parameter is gathered, rounded already, for the
  product, and again for the backward pass: of the gathered kernels only those
  of the layer at work exist. Rematerialisation does the second by itself.

  Args:
    spec: as of `einsum`.
    x: the activation.
    kernel: the parameter, or its slice of one layer.
    rule: the mesh axis of each of its dims.
    policy: of the product.
    remat: the backward pass repeats the forward pass of the layer, so what
      this saves is short-lived.
  """
  if isinstance(kernel, Quantized) or not activations.gathers(rule):
    return einsum(spec, x, kernel, policy)
  _check_batch_dims_lead(spec)
  return _gathered_einsum(spec, rule, policy, remat, x, kernel)


def _check_batch_dims_lead(spec: str) -> None:
  operands, out = spec.split('->')
  a, b = operands.split(',')
  batch = ''.join(c for c in out if c in a and c in b)
  assert all(term.startswith(batch) for term in (a, b, out)), spec


def round_operand(x: Num[Array, '...'], policy: Policy) -> Float[Array, '...']:
  """As an operand of a product under the policy."""
  return x.astype(jnp.dtype(policy.precision))


def product(
  spec: str, policy: Policy, a: Num[Array, '...'], b: Num[Array, '...']
) -> Num[Array, '...']:
  """`jnp.einsum` of rounded operands, without a derivative.

  Float32 out; int32 of operands in int8, which are a precision here only.
  """
  if policy.precision == 'float32':
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
  on_cpu = policy.platform.name == 'cpu'
  if on_cpu and (row := _only_row(spec, a.shape)):
    # Of one row a CPU makes a float32 product, and converts `b` each time.
    pad = [(0, int(dim == row[0])) for dim in range(a.ndim)]
    found = product(spec, policy, jnp.pad(a, pad), b)
    return jax.lax.slice_in_dim(found, 0, 1, axis=row[1])
  out = jnp.int32 if policy.precision == 'int8' else jnp.float32
  return jnp.einsum(spec, a, b, preferred_element_type=out)


def _only_row(spec: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
  """A dim of `a` and of the output, if each matrix of `a` is a single row."""
  operands, out = spec.split('->')
  dims_a, dims_b = operands.split(',')
  rows = [dim for dim in dims_a if dim in out and dim not in dims_b]
  if not rows or any(shape[dims_a.index(dim)] > 1 for dim in rows):
    return None
  return dims_a.index(rows[0]), out.index(rows[0])


def _product_grads(spec, policy, a, b, grad):
  """The gradients of both operands, from that of the product."""
  operands, out = spec.split('->')
  dims_a, dims_b = operands.split(',')
  grad = round_operand(grad, policy)
  return (
    product(f'{out},{dims_b}->{dims_a}', policy, grad, b),
    product(f'{dims_a},{out}->{dims_b}', policy, a, grad),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bfloat16_einsum(spec, policy, a, b):
  return _bfloat16_forward(spec, policy, a, b)[0]


def _bfloat16_forward(spec, policy, a, b):
  # Saving the rounded operands halves what the backward pass keeps.
  a, b = round_operand(a, policy), round_operand(b, policy)
  return product(spec, policy, a, b), (a, b)


def _bfloat16_backward(spec, policy, saved, grad):
  return _product_grads(spec, policy, *saved, grad)


_bfloat16_einsum.defvjp(_bfloat16_forward, _bfloat16_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _gathered_einsum(spec, rule, policy, remat, x, kernel):
  return _gathered_forward(spec, rule, policy, remat, x, kernel)[0]


def _gathered_forward(spec, rule, policy, remat, x, kernel):
  x = round_operand(x, policy)
  whole = activations.gather(round_operand(kernel, policy), rule)
  return product(spec, policy, x, whole), (x, whole if remat else kernel)


def _gathered_backward(spec, rule, policy, remat, saved, grad):
  x, whole = saved
  if not remat:
    # Held back until the gradient is there: a compiler that saw that the
    # forward pass gathers the same would keep that.
    kernel, grad = jax.lax.optimization_barrier((whole, grad))
    whole = activations.gather(round_operand(kernel, policy), rule)
  grad_x, grad_kernel = _product_grads(spec, policy, x, whole, grad)
  return grad_x, activations.scatter(grad_kernel, rule)


_gathered_einsum.defvjp(_gathered_forward, _gathered_backward)
