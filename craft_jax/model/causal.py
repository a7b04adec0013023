"""Causal self-attention of a full window.

NVIDIA GPUs use cuDNN's fused kernel where it supports the shapes. Elsewhere
attention is computed here, one block of queries at a time.

A block reads keys up to its own end only, which skips most of the square above
the diagonal: n blocks compute (n + 1) / 2n of it. The backward pass is written
by hand, because it needs only the rounded weights of each block; JAX's autodiff
would also save the masks, the logits and the unrounded weights.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from craft_jax.model.precision import Policy, product, round_operand

MASKED = -1e30  # finite, so that a fully masked row does not become NaN
# On a CPU, smaller blocks save less than their overhead costs, and more blocks
# take long to compile.
_ROWS, _MOST = 64, 8


def blocks(length: int, platform: str) -> list[tuple[int, int]]:
  """Start and end of each block of queries; accelerators use a single block.

  Args:
    length: tokens in the window.
    platform: JAX's platform name, such as 'cpu'.
  """
  if platform != 'cpu':
    return [(0, length)]
  rows = max(_ROWS, -(-length // _MOST))
  return [(i, min(i + rows, length)) for i in range(0, length, rows)]


def fuses(policy: Policy, length: int, head_dim: int) -> bool:
  """Whether cuDNN's fused kernel, which never stores the weights, applies.

  The limits are those of `jax.nn.dot_product_attention` with a mask.

  Args:
    policy: precision, which has to be bfloat16, and the platform.
    length: tokens in the window.
    head_dim: width of a head.
  """
  fits = head_dim % 8 == 0 and head_dim <= 128 and length % 2 == 0
  rounded = policy.precision == 'bfloat16'
  return policy.platform.fused_attention and rounded and fits


def attend(
  q_BTNH: Float[Array, 'B T N H'],
  k_BTKH: Float[Array, 'B T K H'],
  v_BTKH: Float[Array, 'B T K H'],
  mask_BTT: Bool[Array, '#B T T'] | None,
  policy: Policy,
  slopes: Sequence[float] = (),
) -> Float[Array, 'B T N H']:
  """Causal softmax attention; scales logits by 1 / sqrt(H).

  Args:
    q_BTNH: queries, float32.
    k_BTKH: keys, float32. N is a multiple of K, and the query heads that share
      a key/value head are adjacent.
    v_BTKH: values, float32.
    mask_BTT: True where a query (second dim) may attend to a key, in addition
      to the causal mask; None adds no restriction.
    policy: precision of matrix products and the platform.
    slopes: ALiBi slope per head, subtracted per position of distance.
  """
  if fuses(policy, q_BTNH.shape[1], q_BTNH.shape[3]):
    q_BTNH, k_BTKH, v_BTKH = (
      round_operand(x, policy) for x in (q_BTNH, k_BTKH, v_BTKH)
    )
    y_BTNH = fused(q_BTNH, k_BTKH, v_BTKH, mask_BTT, slopes)
    return y_BTNH.astype(jnp.float32)
  return _attend(policy, tuple(slopes), q_BTNH, k_BTKH, v_BTKH, mask_BTT)


def fused(
  q_BTNH: Float[Array, 'B T N H'],
  k_BTKH: Float[Array, 'B T K H'],
  v_BTKH: Float[Array, 'B T K H'],
  mask_BTT: Bool[Array, '#B T T'] | None,
  slopes: Sequence[float],
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> Float[Array, 'B T N H']:
  """Causal attention by `jax.nn.dot_product_attention`, in the operands' dtype.

  Args:
    q_BTNH: queries.
    k_BTKH: keys.
    v_BTKH: values.
    mask_BTT: True where attention is allowed. With neither mask nor slopes no
      `[T, T]` array is read from memory.
    slopes: ALiBi slope per head; empty without ALiBi.
    implementation: 'xla' runs on any device.
  """
  T = q_BTNH.shape[1]
  return jax.nn.dot_product_attention(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    bias=-_distances(slopes, 0, T).astype(q_BTNH.dtype) if slopes else None,
    mask=None if mask_BTT is None else mask_BTT[:, None],
    is_causal=True,
    implementation=implementation,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(policy, slopes, q_BTNH, k_BTKH, v_BTKH, mask_BTT):
  return _forward(policy, slopes, q_BTNH, k_BTKH, v_BTKH, mask_BTT)[0]


def _forward(policy, slopes, q_BTNH, k_BTKH, v_BTKH, mask_BTT):
  H = q_BTNH.shape[-1]
  q_BNTH = _heads_first(q_BTNH * H**-0.5, policy)
  k_BKTH = _heads_first(k_BTKH, policy)
  v_BKTH = _heads_first(v_BTKH, policy)
  y, weights = [], []
  for start, end in blocks(q_BTNH.shape[1], policy.platform.name):
    q_BKGH = _grouped(q_BNTH[:, :, start:end], k_BKTH)
    logits_BKGS = product('BKGH,BKSH->BKGS', policy, q_BKGH, k_BKTH[:, :, :end])
    logits_BNTS = _ungrouped(logits_BKGS, q_BNTH, end - start)
    if slopes:
      logits_BNTS -= _distances(slopes, start, end)
    mask_BTS = (
      _before(start, end) if mask_BTT is None else mask_BTT[:, start:end, :end]
    )
    logits_BNTS = jnp.where(mask_BTS[:, None], logits_BNTS, MASKED)
    weights_BNTS = jax.nn.softmax(logits_BNTS, axis=-1)
    weights_BKGS = round_operand(_grouped(weights_BNTS, k_BKTH), policy)
    y_BKGH = product(
      'BKGS,BKSH->BKGH', policy, weights_BKGS, v_BKTH[:, :, :end]
    )
    y.append(_ungrouped(y_BKGH, q_BNTH, end - start))
    weights.append(weights_BKGS)
  y_BTNH = jnp.concatenate(y, axis=2).swapaxes(1, 2)
  return y_BTNH, (q_BNTH, k_BKTH, v_BKTH, weights)


def _backward(policy, slopes, kept, grad_BTNH):
  del slopes
  q_BNTH, k_BKTH, v_BKTH, weights = kept
  grad_BNTH = _heads_first(grad_BTNH, policy)
  T, H = q_BNTH.shape[2:]
  queries, keys, values = [], 0.0, 0.0
  ends = blocks(T, policy.platform.name)
  for (start, end), weights_BKGS in zip(ends, weights, strict=True):
    q_BKGH = _grouped(q_BNTH[:, :, start:end], k_BKTH)
    grad_BKGH = _grouped(grad_BNTH[:, :, start:end], k_BKTH)
    of_weights_BKGS = product(
      'BKGH,BKSH->BKGS', policy, grad_BKGH, v_BKTH[:, :, :end]
    )
    shares_BKGS = weights_BKGS.astype(jnp.float32)
    mean_BKG1 = jnp.sum(of_weights_BKGS * shares_BKGS, axis=-1, keepdims=True)
    of_logits_BKGS = round_operand(
      shares_BKGS * (of_weights_BKGS - mean_BKG1), policy
    )
    of_q_BKGH = product(
      'BKGS,BKSH->BKGH', policy, of_logits_BKGS, k_BKTH[:, :, :end]
    )
    queries.append(_ungrouped(of_q_BKGH, q_BNTH, end - start))
    rest = ((0, 0), (0, 0), (0, T - end), (0, 0))
    of_k_BKSH = product('BKGH,BKGS->BKSH', policy, q_BKGH, of_logits_BKGS)
    of_v_BKSH = product('BKGS,BKGH->BKSH', policy, weights_BKGS, grad_BKGH)
    keys += jnp.pad(of_k_BKSH, rest)
    values += jnp.pad(of_v_BKSH, rest)
  of_q_BTNH = jnp.concatenate(queries, axis=2).swapaxes(1, 2) * H**-0.5
  return of_q_BTNH, keys.swapaxes(1, 2), values.swapaxes(1, 2), None


_attend.defvjp(_forward, _backward)


def _heads_first(x_BTNH, policy):
  """Rounds, then transposes half the bytes: transposing is slow on a CPU."""
  return round_operand(x_BTNH, policy).swapaxes(1, 2)


def _grouped(x_BNTX, k_BKTH):
  """Merges query heads that share a key into `[B, K, N / K * T, X]`."""
  B, _, _, X = x_BNTX.shape
  return x_BNTX.reshape(B, k_BKTH.shape[1], -1, X)


def _ungrouped(x_BKGX, q_BNTH, rows):
  """Inverts `_grouped`, to `[B, N, rows, X]`."""
  B, _, _, X = x_BKGX.shape
  return x_BKGX.reshape(B, q_BNTH.shape[1], rows, X)


def _before(start, end):
  """Causal mask of a block of queries, `[1, T, S]`."""
  return (jnp.arange(start, end)[:, None] >= jnp.arange(end)[None])[None]


def _distances(slopes, start, end):
  """ALiBi penalty on the logits of a block of queries, `[1, N, T, S]`."""
  distance_TS = jnp.arange(start, end)[:, None] - jnp.arange(end)[None]
  slope_N = jnp.asarray(slopes, jnp.float32)
  return (slope_N[:, None, None] * distance_TS[None].astype(jnp.float32))[None]
