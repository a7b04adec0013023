"""Which steps of a call were bad, and why."""

from collections.abc import Iterator, Mapping

import numpy as np

# What must be finite, in the order in which it is computed.
_FINITE = {'loss': 'loss', 'gradient': 'grad_norm'}


class BadStep(Exception):
  """A step that is not to be skipped.

  Attributes:
    step: its number, from 1.
    reason: what was wrong with it.
    lost: whether the parameters are not finite any more either.
  """

  def __init__(self, step: int, reason: str, lost: bool):
    super().__init__(f'step {step}: {reason}')
    self.step, self.reason, self.lost = step, reason, lost


def bad_steps(rows: Mapping[str, np.ndarray]) -> Iterator[tuple[int, str]]:
  """The index and the reason of each bad step of a call.

  Args:
    rows: metric sums with a leading dim of steps.
  """
  for i in np.flatnonzero(rows['good'] == 0):
    reason = 'the loss or the gradient norm is a spike'
    for word, name in _FINITE.items():
      if not np.isfinite(rows[name][i]):
        reason = f'the {word} is not finite'
        break
    yield int(i), reason
