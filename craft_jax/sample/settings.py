"""What a request may ask for. Free of jax, so that `--help` is quick."""

import dataclasses
import math

from craft_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SampleSettings:
  """How the next symbol is chosen; applied in this order.

  Attributes:
    temperature: divides the logits. 0 takes the most likely symbol, the lower
      id among equals.
    top_k: keep this many most likely symbols, among equals the lower ids; 0,
      or more than there are, keeps all.
    top_p: of what top_k left, keep the fewest most likely symbols whose
      probabilities reach this sum. 1 keeps all, 0 only the first.
    end: whether the symbol that ends a document may be chosen; it finishes
      the text.

  Raises:
    UserError: a value out of range.
  """

  temperature: float = 0.8
  top_k: int = 0
  top_p: float = 1.0
  end: bool = True

  def __post_init__(self) -> None:
    if not (math.isfinite(self.temperature) and self.temperature >= 0):
      raise UserError(
        f'temperature={self.temperature} must be finite and at least 0 '
        '(0 is greedy)'
      )
    if not 0 <= self.top_k < 2**31:
      raise UserError(
        f'top_k={self.top_k} must be from 0 (keep all) to {2**31 - 1}'
      )
    if not 0 <= self.top_p <= 1:
      raise UserError(f'top_p={self.top_p} must be from 0 to 1 (keep all)')
