"""Muon: momentum with orthogonalized updates for hidden matrices.

The update of a hidden matrix with momentum G = U S V^T is U V^T, the steepest
descent direction under the spectral norm (Jordan 2024,
https://kellerjordan.github.io/posts/muon; Bernstein & Newhouse 2024,
arXiv:2409.20325). U V^T is approximated by a few odd polynomials of G, which
take matrix products only.

`optax.contrib.muon` does this leaf by leaf, in float32, on every device. Here
matrices of equal shape are stacked for batched products, with bfloat16 operands
if the precision policy says so, and each device orthogonalizes its share of the
stack, whatever the sharding of the parameters.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from craft_jax.model.sharding import rules
from craft_jax.types import Params

NUM_ITERATIONS = 4  # three products each; docs/optimization.md has the errors
LOWEST = 3e-3  # singular values from here on, relative to the largest, become 1
_CUSHION = 0.02  # keeps the first polynomials from amplifying rounding errors
_SAFETY = 1.01  # factor by which rounding may increase a singular value
Coefficients = tuple[tuple[float, float, float], ...]
_OPERANDS = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}


class MuonState(NamedTuple):
  """The moving average of gradients, a tree like the parameters."""

  momentum: Params


def scale_by_muon(
  momentum: float,
  precision: str,
  mesh: Mesh | None = None,
  table: rules.Rules | None = None,
  num_iterations: int = NUM_ITERATIONS,
) -> optax.GradientTransformation:
  """Orthogonalized Nesterov momentum of stacked kernels `[L, in, out]`.

  With m = momentum * m + (1 - momentum) * g, the matrix orthogonalized is
  momentum * m + (1 - momentum) * g. Its scale cancels, so that no bias
  correction is needed.

  Updates are multiplied by sqrt(max(1, out / in)), the convention of the
  reference implementation and of `optax.contrib.muon`: their largest singular
  value is then about sqrt(out / in) for widening matrices and 1 for others, so
  that one learning rate suits all layers and transfers between widths.

  Args:
    momentum: decay of the moving average, below 1.
    precision: 'bfloat16' (operands; sums are float32) or 'float32'.
    mesh: devices that share the work; None repeats it on every device.
    table: sharding rules of the parameters, for a mesh of several devices.
    num_iterations: number of polynomials applied.

  Returns:
    A transformation of trees whose leaves all have three dims.
  """
  coefficients = polar_coefficients(num_iterations)

  def init(params: Params) -> MuonState:
    return MuonState(jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params=None):
    del params
    mix = functools.partial(jax.tree.map, _mix(momentum))
    mean = mix(state.momentum, grads)
    found, treedef = jax.tree.flatten_with_path(mix(mean, grads))
    leaves = _orthogonalize_leaves(
      [leaf for _, leaf in found],
      [_layouts(path, mesh, table or {}) for path, _ in found],
      coefficients,
      precision,
    )
    return jax.tree.unflatten(treedef, leaves), MuonState(mean)

  return optax.GradientTransformation(init, update)


def _mix(decay: float):
  return lambda mean, new: decay * mean + (1 - decay) * new


# Successive shardings of a stack, from that of its leaves to whole matrices.
_Layouts = tuple[NamedSharding, ...]


def _layouts(
  path: tuple[Any, ...], mesh: Mesh | None, table: rules.Rules
) -> _Layouts:
  """Shardings through which a leaf's stack passes to become whole matrices.

  One mesh axis at a time moves from a dim of the matrices to that of the stack
  by an all-to-all, in which no device holds more than its share. Axes over
  which the leaf is replicated come last: a slice, and an all-gather on return.
  """
  if mesh is None or mesh.size == 1:
    return ()
  sizes = mesh.shape
  kept = rules.rule_of(rules.names_of(path), table)
  dims = [axis if axis and sizes[axis] > 1 else None for axis in kept]
  moved: list[str] = []
  specs = [PartitionSpec(*dims)]
  for dim, axis in enumerate(dims):
    if axis:
      moved, dims[dim] = [*moved, axis], None
      specs.append(PartitionSpec(tuple(moved), *dims[1:]))
  copies = [a for a in sizes if sizes[a] > 1 and a not in moved]
  if copies:
    specs.append(PartitionSpec((*moved, *copies)))
  return tuple(NamedSharding(mesh, spec) for spec in specs)


def _orthogonalize_leaves(
  leaves: list[Array],
  layouts: list[_Layouts],
  coefficients: Coefficients,
  precision: str,
) -> list[Array]:
  """Orthogonalizes and scales `[L, in, out]` leaves, batched by shape."""
  groups: dict[tuple[tuple[int, ...], _Layouts], list[int]] = {}
  for i, (leaf, layout) in enumerate(zip(leaves, layouts, strict=True)):
    groups.setdefault((leaf.shape[1:], layout), []).append(i)
  result = list(leaves)
  for ((rows, columns), layout), members in groups.items():
    stack = _sharded(jnp.concatenate([leaves[i] for i in members]), layout)
    # The smaller dim comes first to keep the Gram matrix small. Transposing
    # comes after sharding, because it is slow on a CPU (1 MB in about 1 ms).
    tall = rows > columns
    stack = _transposed(stack) if tall else stack
    stack = orthogonalize(stack, coefficients, precision)
    stack = stack * math.sqrt(max(1.0, columns / rows))
    stack = _transposed(stack) if tall else stack
    stack = _pinned(stack, layout[::-1])
    ends = np.cumsum([leaves[i].shape[0] for i in members])
    parts = jnp.split(stack[: ends[-1]], ends[:-1])
    for i, part in zip(members, parts, strict=True):
      result[i] = part
  return result


def _sharded(stack: Array, layouts: _Layouts) -> Array:
  """Shards a stack by whole matrices, padded with zeros."""
  if not layouts:
    return stack
  shards = layouts[-1].mesh.size
  stack = jnp.pad(stack, ((0, -len(stack) % shards), (0, 0), (0, 0)))
  return _pinned(stack, layouts)


def _pinned(stack: Array, layouts: _Layouts) -> Array:
  for layout in layouts:
    stack = jax.lax.with_sharding_constraint(stack, layout)
  return stack


def _transposed(stack: Array) -> Array:
  """Transposes each matrix, and keeps XLA from folding that into a product.

  The product would contract a non-minor dim, which with bfloat16 operands
  compiles on a CPU but fails at run time.
  """
  barrier = jax.lax.optimization_barrier
  return barrier(barrier(stack).swapaxes(1, 2))


def orthogonalize(
  x: Float[Array, 'M I J'], coefficients: Coefficients, precision: str
) -> Float[Array, 'M I J']:
  """Moves the singular values of M matrices, I <= J, towards one.

  Every product contracts the minor dim of its left operand, the only form of
  bfloat16 x bfloat16 -> float32 that XLA's CPU backend runs on any number of
  devices. Zero matrices stay zero.

  The polynomials need singular values of at most one. Matrices are divided by
  the Schatten-4 norm, |X X^T|_F ^ 1/2, which is free, since the first iteration
  computes X X^T, and a tighter bound than the Frobenius norm: n^(1/4) instead
  of n^(1/2) times too large for n equal singular values.

  If J >= 2 I, two iterations are merged into one I x I factor before it
  multiplies X. Merging all of them would square the condition number too often
  for bfloat16; two cost no accuracy (docs/optimization.md).

  Args:
    x: matrices, float32.
    coefficients: (a, b, c) of each polynomial, from `polar_coefficients`.
    precision: dtype of the operands, 'bfloat16' or 'float32'.
  """
  # Dividing by the largest entry keeps squares from overflow and underflow.
  largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
  x = x / jnp.where(largest > 0, largest, 1.0)
  fold = 2 if x.shape[2] >= 2 * x.shape[1] else 1
  for start in range(0, len(coefficients), fold):
    gram = _times_transposed(x, x, precision)
    if start == 0:
      norm = jnp.linalg.norm(gram, axis=(1, 2), keepdims=True) * _SAFETY**2
      norm = jnp.where(norm > 0, norm, 1.0)
      x, gram = x * jax.lax.rsqrt(norm), gram / norm
    factor = _factor(gram, coefficients[start], precision)
    for quintic in coefficients[start + 1 : start + fold]:
      # These matrices are symmetric and commute, so that A @ B equals A @ B^T,
      # and the Gram matrix of factor @ x is factor @ gram @ factor.
      gram = _times_transposed(factor, gram, precision)
      gram = _times_transposed(gram, factor, precision)
      factor = _times_transposed(
        _factor(gram, quintic, precision), factor, precision
      )
    x = _product('mij,mjk->mik', factor, x, precision)
  return x


def _factor(
  gram: Array, quintic: tuple[float, float, float], precision: str
) -> Array:
  """The factor a + b G + c G^2 of p(X), with the Gram matrix G = X X^T."""
  a, b, c = quintic
  square = _times_transposed(gram, gram, precision)
  return a * jnp.eye(gram.shape[-1])[None] + b * gram + c * square


def _times_transposed(a: Array, b: Array, precision: str) -> Array:
  return _product('mij,mkj->mik', a, b, precision)


def _product(equation: str, a: Array, b: Array, precision: str) -> Array:
  dtype = _OPERANDS[precision]
  return jnp.einsum(
    equation,
    a.astype(dtype),
    b.astype(dtype),
    precision='highest' if dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


# --- coefficients ------------------------------------------------------------


@functools.cache
def polar_coefficients(
  num_iterations: int, lowest: float = LOWEST
) -> Coefficients:
  """Coefficients (a, b, c) of p(x) = a x + b x^3 + c x^5 for each iteration.

  Each p minimizes the largest deviation from 1 on the interval to which its
  predecessors map [lowest, 1], which makes their composition optimal (Polar
  Express, Amsel et al. 2025, arXiv:2505.16932).
  """
  low, high = lowest, 1.0
  result = []
  for i in range(num_iterations):
    a, b, c = _best_quintic(max(low, _CUSHION * high), high)
    at_low, at_high = (a * t + b * t**3 + c * t**5 for t in (low, high))
    centre = (at_low + at_high) / 2  # 1, unless the cushion raised `low`
    a, b, c = a / centre, b / centre, c / centre
    low = at_low / centre
    high = 2 - low
    slack = _SAFETY if i < num_iterations - 1 else 1.0
    result.append((a / slack, b / slack**3, c / slack**5))
  return tuple(result)


def _best_quintic(low: float, high: float) -> tuple[float, float, float]:
  """The odd quintic closest to 1 on [low, high], by Remez exchange."""
  if low > (1 - 1e-5) * high:  # the limit, where the exchange is singular
    return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
  inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
  for _ in range(100):
    t = np.array([low, *inner, high])
    # p(t) = 1 - e, 1 + e, 1 - e, 1 + e at the four points.
    rows = np.stack([t, t**3, t**5, np.array([1.0, -1, 1, -1])], axis=1)
    a, b, c, _ = np.linalg.solve(rows, np.ones(4))
    root = math.sqrt(9 * b * b - 20 * a * c)
    old, inner = (
      inner,
      np.sqrt(np.array([-3 * b - root, -3 * b + root]) / 10 / c),
    )
    if np.abs(inner - old).max() < 1e-14:
      break
  return float(a), float(b), float(c)
