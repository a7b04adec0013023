"""Matrix products under one precision policy.

`bfloat16`: operands are rounded to bfloat16, products are summed and returned
in float32, in the backward pass too. On a CPU only this form reaches the matrix
units (docs/architecture.md has the measurements).
`float32`: float32 throughout, the reference.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resolve_precision(setting: str) -> str:
  """'bfloat16' or 'float32' for the setting, asking the hardware if 'auto'.

  TPUs, NVIDIA GPUs from compute capability 8.0 (Ampere), AMD's, and CPUs with
  AMX or AVX-512-BF16 multiply bfloat16 faster than float32; the rest emulate.
  """
  if setting != 'auto':
    return setting
  if jax.default_backend() == 'cpu':
    fast = _cpu_has_bfloat16()
  else:
    fast = _accelerator_has_bfloat16(jax.devices()[0])
  return 'bfloat16' if fast else 'float32'


def _accelerator_has_bfloat16(device: jax.Device) -> bool:
  """False for NVIDIA GPUs before 8.0; others name no such number."""
  major, dot, _ = getattr(device, 'compute_capability', '').partition('.')
  return not (dot and major.isdigit() and int(major) < 8)


def _cpu_has_bfloat16() -> bool:
  """Whether /proc/cpuinfo lists bfloat16 products; False where it is absent."""
  try:
    with open('/proc/cpuinfo') as f:
      flags = next((line for line in f if line.startswith('flags')), '')
  except OSError:
    return False
  return bool({'amx_bf16', 'avx512_bf16'} & set(flags.split()))


def einsum(
  spec: str, a: Float[Array, '...'], b: Float[Array, '...'], precision: str
) -> Float[Array, '...']:
  """`jnp.einsum` of two float32 arrays under the policy, float32 out.

  On a CPU, bfloat16 products run only if the dims that stay in both operands
  and the output come first, in one order ("BNTH,BNSH->BNTS", not
  "BTNH,BSNH->BNTS"); any other form would compile and then fail.
  """
  if precision == 'float32':
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
  _check_batch_dims_lead(spec)
  return _bfloat16_einsum(spec, a, b)


def _check_batch_dims_lead(spec: str) -> None:
  operands, out = spec.split('->')
  a, b = operands.split(',')
  batch = ''.join(c for c in out if c in a and c in b)
  assert all(term.startswith(batch) for term in (a, b, out)), spec


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bfloat16_einsum(spec, a, b):
  return _product(spec, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))


def _product(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _forward(spec, a, b):
  # Saving the rounded operands halves what the backward pass keeps.
  a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  return _product(spec, a, b), (a, b)


def _backward(spec, saved, grad):
  a, b = saved
  operands, out = spec.split('->')
  dims_a, dims_b = operands.split(',')
  grad = grad.astype(jnp.bfloat16)
  return (
    _product(f'{out},{dims_b}->{dims_a}', grad, b),
    _product(f'{dims_a},{out}->{dims_b}', a, grad),
  )


_bfloat16_einsum.defvjp(_forward, _backward)
