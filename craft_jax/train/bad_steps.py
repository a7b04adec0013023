"""Detection of bad steps: not finite, or a spike."""

from collections.abc import Iterator, Mapping

import numpy as np

# Metrics that must be finite, in order of computation.
_FINITE = {'loss': 'loss', 'gradient': 'grad_norm'}


class BadStep(Exception):
  """Raised for a bad step that is not skipped.

  Attributes:
    step: number of the step, from 1.
    reason: what is wrong with it.
    lost: whether the parameters are no longer finite.
  """

  def __init__(self, step: int, reason: str, lost: bool):
    super().__init__(f'step {step}: {reason}')
    self.step, self.reason, self.lost = step, reason, lost


def bad_steps(rows: Mapping[str, np.ndarray]) -> Iterator[tuple[int, str]]:
  """Yields index and reason of each bad step, from metric sums by step."""
  for i in np.flatnonzero(rows['good'] == 0):
    reason = 'the loss or the gradient norm is a spike'
    for word, name in _FINITE.items():
      if not np.isfinite(rows[name][i]):
        reason = f'the {word} is not finite'
        break
    yield int(i), reason
