"""Array aliases and the one legend of the dims in names.

B batch, T query positions, S cache positions, D width, F mlp width, N heads,
K key/value heads, H head dim, V vocabulary, L layers. The suffix of a name
gives its dims in order: `x_BTD` is `[batch, positions, width]`. The same
letters stand in einsum strings.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

Params = Any  # nested dict of arrays
MetricSums = dict[str, Array]  # sums and counts; divided only when printed


class Batch(NamedTuple):
  """What a training or evaluation step reads.

  Attributes:
    x_BT: input tokens.
    y_BT: the token that follows each input.
    weight_BT: 1 where the target counts, 0 where it does not.
    segment_BT: number of the document within the window, from 0.
  """

  x_BT: Int[Array, 'B T']
  y_BT: Int[Array, 'B T']
  weight_BT: Float[Array, 'B T']
  segment_BT: Int[Array, 'B T']
