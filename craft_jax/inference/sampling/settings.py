"""The options of a text and what the vocabulary makes of them."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from craft_jax.errors import UserError
from craft_jax.inference.sampling.options import Sampling

if TYPE_CHECKING:
  from craft_jax.constrain import Automaton

_MOST_BIAS = 1e4


@dataclasses.dataclass(frozen=True)
class SampleSettings(Sampling):
  """All that decides how a text is written.

  Attributes:
    end: whether the token that ends a document may be chosen; it finishes the
      text.
    logit_bias: added to the logits of these ids.
    constraint: an automaton that what is written must match as a whole; see
      `craft_jax.constrain`.
    utf8: of a byte vocabulary, whether only valid UTF-8 is written. What a
      constraint allows is valid anyway.

  Raises:
    UserError: a value out of bounds.
  """

  end: bool = True
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  constraint: 'Automaton | None' = None
  utf8: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    for token, bias in self.logit_bias.items():
      if not abs(bias) <= _MOST_BIAS:
        raise UserError(
          f'logit_bias of token {token} is {bias}; it must be from '
          f'{-_MOST_BIAS:g} to {_MOST_BIAS:g}'
        )
