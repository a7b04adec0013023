"""Array aliases, and the letters for dims in names and einsum strings.

B batch, T query positions, S cache positions, D width, F MLP width, N heads,
K key/value heads, H head dim, V vocabulary, L layers. The suffix of a name
gives its dims in order: `x_BTD` is `[batch, positions, width]`.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

Params = Any  # nested dict of arrays
MetricSums = dict[str, Array]  # sums and counts; divided only when printed


class Batch(NamedTuple):
  """The input of a training or evaluation step.

  Attributes:
    x_BT: input tokens.
    y_BT: target tokens, the successors of the inputs.
    weight_BT: loss weight of each target, 1 or 0.
    segment_BT: index of the document within the window, from 0.
  """

  x_BT: Int[Array, 'B T']
  y_BT: Int[Array, 'B T']
  weight_BT: Float[Array, 'B T']
  segment_BT: Int[Array, 'B T']
