"""What a request may ask for. Free of jax, so that `--help` is quick."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from craft_jax.errors import UserError

if TYPE_CHECKING:
  from craft_jax.constrain import Automaton

_MOST_BIAS = 1e4


@dataclasses.dataclass(frozen=True)
class SampleSettings:
  """How the next symbol is chosen; docs/sampling.md has the order.

  Attributes:
    temperature: divides the logits. 0 takes the most likely symbol, the lower
      id among equals.
    top_k: keep this many most likely symbols, among equals the lower ids; 0,
      or more than there are, keeps all.
    top_p: of what top_k left, keep the fewest most likely symbols whose
      probabilities reach this sum. 1 keeps all, 0 only the first.
    min_p: drop symbols less likely than this share of the most likely one. 0
      keeps all, 1 only the first and its equals.
    typical_p: of what is left, keep the fewest symbols whose information is
      nearest the entropy and whose probabilities reach this sum. 1 keeps all,
      0 only the most typical one.
    repetition_penalty: divides the logits above 0 of the symbols seen lately,
      and multiplies those below; 1 is none.
    presence_penalty: taken from the logits of the symbols seen lately.
    frequency_penalty: taken from them for each time they were seen.
    penalty_window: how many of the last symbols count as lately, those of the
      prompt included; at most the context.
    logit_bias: added to the logits of these ids.
    min_chars: characters before which the text does not end by itself.
    end: whether the symbol that ends a document may be chosen; it finishes
      the text.
    stop: texts before which the written text ends: that which is complete
      first, of several at once the longest.
    constraint: an automaton that what is written must match as a whole; see
      `craft_jax.constrain`.
    utf8: of a byte vocabulary, whether only valid UTF-8 is written. What a
      constraint allows is that anyway.

  Raises:
    UserError: a value out of range.
  """

  temperature: float = 0.8
  top_k: int = 0
  top_p: float = 1.0
  end: bool = True
  min_p: float = 0.0
  typical_p: float = 1.0
  repetition_penalty: float = 1.0
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  penalty_window: int = 64
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  min_chars: int = 0
  stop: tuple[str, ...] = ()
  constraint: 'Automaton | None' = None
  utf8: bool = False

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
    for name, keeps_all in (('top_p', 1), ('min_p', 0), ('typical_p', 1)):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise UserError(
          f'{name}={value} must be from 0 to 1 ({keeps_all} keeps all)'
        )
    if not 0 < self.repetition_penalty < math.inf:
      raise UserError(
        f'repetition_penalty={self.repetition_penalty} must be finite and '
        'above 0 (1 is none)'
      )
    for name in ('presence_penalty', 'frequency_penalty'):
      if not abs(getattr(self, name)) <= _MOST_BIAS:
        raise UserError(
          f'{name}={getattr(self, name)} must be from {-_MOST_BIAS:g} to '
          f'{_MOST_BIAS:g}'
        )
    for symbol, bias in self.logit_bias.items():
      if not abs(bias) <= _MOST_BIAS:
        raise UserError(
          f'logit_bias of symbol {symbol} is {bias}; it must be from '
          f'{-_MOST_BIAS:g} to {_MOST_BIAS:g}'
        )
    for name, least in (('penalty_window', 1), ('min_chars', 0)):
      if not least <= getattr(self, name) < 2**31:
        raise UserError(
          f'{name}={getattr(self, name)} must be at least {least}'
        )
    if isinstance(self.stop, str) or not all(self.stop):
      raise UserError('stop must be a list of texts, none of them empty')
