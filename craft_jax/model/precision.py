"""Matrix products under one precision policy.

`bfloat16` rounds operands to bfloat16, accumulates and returns float32, in the
backward pass too. On a CPU only this form uses the matrix units
(docs/architecture.md has measurements). `float32` is float32 throughout.
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
  """Properties of the target devices that the compiled program depends on.

  Attributes:
    name: JAX's platform name: 'cpu', 'gpu' or 'tpu'.
    bfloat16: whether bfloat16 products are faster than float32 ones.
    fused_attention: whether cuDNN's attention kernels are available.
  """

  name: str
  bfloat16: bool
  fused_attention: bool


# Assumed by the planner for devices that are not present.
PLATFORMS = {
  'cpu': Platform('cpu', bfloat16=True, fused_attention=False),
  'gpu': Platform('gpu', bfloat16=True, fused_attention=True),
  'tpu': Platform('tpu', bfloat16=True, fused_attention=False),
}


def platform_of(device: Any) -> Platform:
  """The platform of a `jax.Device`, present or from a topology description.

  TPUs, AMD GPUs, NVIDIA GPUs of compute capability 8.0 (Ampere) or above, and
  CPUs with AMX or AVX-512-BF16 have bfloat16 units; other devices emulate it.
  cuDNN's attention kernels need compute capability 8.0, too.
  """
  if device.platform == 'cpu':
    return Platform('cpu', _cpu_has_bfloat16(), fused_attention=False)
  # Of GPUs, only NVIDIA's report a number such as 8.0.
  number = getattr(device, 'compute_capability', '')
  major, dot, _ = str(number).partition('.')
  nvidia = bool(dot) and major.isdigit()
  recent = nvidia and int(major) >= 8
  return Platform(device.platform, recent or not nvidia, recent)


class Policy(NamedTuple):
  """Precision of matrix products, and the platform they run on.

  Attributes:
    precision: dtype of the operands, 'bfloat16' or 'float32'; 'int8' only
      within products of quantized arrays.
    platform: platform of the target devices.
  """

  precision: str
  platform: Platform


def resolve_precision(setting: str, platform: Platform) -> str:
  """Resolves `model.precision`; 'auto' is the platform's faster dtype."""
  if setting != 'auto':
    return setting
  return 'bfloat16' if platform.bfloat16 else 'float32'


def _cpu_has_bfloat16() -> bool:
  """Whether /proc/cpuinfo exists and lists bfloat16 product instructions."""
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
  """Differentiable `jnp.einsum` under the policy; float32 in and out.

  In bfloat16, batch dims (those in both operands and the output) have to come
  first and in the same order: "BNTH,BNSH->BNTS", not "BTNH,BSNH->BNTS". On a
  CPU any other order compiles and then fails at run time.
  """
  if isinstance(b, Quantized):
    return _int8_einsum(spec, a, b, policy)
  if policy.precision == 'float32':
    return product(spec, policy, a, b)
  _check_batch_dims_lead(spec)
  return _bfloat16_einsum(spec, policy, a, b)


def _int8_einsum(spec, a, kernel, policy):
  """`einsum` with an int8 kernel.

  Accelerators convert the kernel as it enters the product. A CPU would first
  write a floating-point copy of it, and keep that during a loop (docs/log.md),
  so that on a CPU each row of `a` is rounded to int8 as well.
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
  """`einsum` of an activation with a parameter that may be sharded (FSDP).

  A parameter sharded over `fsdp` is rounded and all-gathered in the forward
  pass and again in the backward pass, so that gathered kernels exist for one
  layer at a time. Under rematerialisation the recomputed forward pass already
  gathers it again.

  Args:
    spec: einsum string with batch dims first.
    x: activation, float32.
    kernel: parameter, or its slice for one layer.
    rule: mesh axis of each dim of the parameter.
    policy: precision of the product and the platform.
    remat: whether the surrounding layer is rematerialised.
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
  """Casts `x` to the dtype of the policy's operands."""
  return x.astype(jnp.dtype(policy.precision))


def product(
  spec: str, policy: Policy, a: Num[Array, '...'], b: Num[Array, '...']
) -> Num[Array, '...']:
  """`jnp.einsum` of operands already in the policy's dtype; not differentiable.

  Returns float32, or int32 for int8 operands.
  """
  if policy.precision == 'float32':
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
  on_cpu = policy.platform.name == 'cpu'
  if on_cpu and (row := _only_row(spec, a.shape)):
    # For a single row XLA's CPU backend converts all of `b` to float32.
    pad = [(0, int(dim == row[0])) for dim in range(a.ndim)]
    found = product(spec, policy, jnp.pad(a, pad), b)
    return jax.lax.slice_in_dim(found, 0, 1, axis=row[1])
  out = jnp.int32 if policy.precision == 'int8' else jnp.float32
  return jnp.einsum(spec, a, b, preferred_element_type=out)


def _only_row(spec: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
  """Index in `a` and in the output of a row dim, if `a` has a single row."""
  operands, out = spec.split('->')
  dims_a, dims_b = operands.split(',')
  rows = [dim for dim in dims_a if dim in out and dim not in dims_b]
  if not rows or any(shape[dims_a.index(dim)] > 1 for dim in rows):
    return None
  return dims_a.index(rows[0]), out.index(rows[0])


def _product_grads(spec, policy, a, b, grad):
  """Gradients of both operands, given the gradient of their product."""
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
  # Saving rounded operands halves the memory held for the backward pass.
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
    # The barrier delays the second gather until the gradient is available;
    # without it XLA would merge both gathers and keep the result in memory.
    kernel, grad = jax.lax.optimization_barrier((whole, grad))
    whole = activations.gather(round_operand(kernel, policy), rule)
  grad_x, grad_kernel = _product_grads(spec, policy, x, whole, grad)
  return grad_x, activations.scatter(grad_kernel, rule)


_gathered_einsum.defvjp(_gathered_forward, _gathered_backward)
