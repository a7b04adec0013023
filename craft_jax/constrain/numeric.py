"""Automata of JSON numbers within bounds, compared digit by digit.

Numbers have no exponent and no leading zeros, and `-0` is excluded. Integers
have up to 18 digits (64 bits), or as many as a bound. Other numbers have up to
15 digits in all, which a binary double preserves: numbers with different
digits are different doubles, so comparing digits compares doubles.
"""

import dataclasses
import math
from decimal import Decimal
from typing import NamedTuple

from craft_jax.constrain import dfa
from craft_jax.constrain.budget import Budget
from craft_jax.constrain.dfa import Dfa
from craft_jax.constrain.intervals import Intervals, of_text

_INTEGER_DIGITS = 18
_NUMBER_DIGITS = 15
_ROW_WORK = 60  # operations per state
_TOKENS = '-.0123456789'
_CLASSES: tuple[Intervals, ...] = tuple(of_text(c) for c in _TOKENS)


@dataclasses.dataclass(frozen=True)
class Bound:
  """A lower or upper bound of a number.

  Attributes:
    value: the bound.
    strict: whether the bound itself is excluded.
  """

  value: Decimal
  strict: bool


@dataclasses.dataclass(frozen=True)
class _Digits:
  """A bound of the magnitude as digits before and after the decimal point."""

  whole: str
  fraction: str
  strict: bool

  @staticmethod
  def of(bound: Bound) -> '_Digits':
    text = f'{bound.value.copy_abs():f}'
    whole, _, fraction = text.partition('.')
    return _Digits(whole, fraction.rstrip('0'), bound.strict)

  def step(self, order: int, count: int, digit: str, whole: bool) -> int:
    """Compares a prefix with the bound (-1, 0, 1) after one more digit.

    Args:
      order: result before this digit.
      count: digits so far on this side of the decimal point.
      digit: the new digit.
      whole: whether it is before the decimal point.
    """
    digits = self.whole if whole else self.fraction
    if whole and count >= len(digits):
      return 1  # more digits than the bound, and no leading zeros
    other = digits[count] if count < len(digits) else '0'
    return order or (digit > other) - (digit < other)

  def at_point(self, order: int, count: int) -> int:
    """Compares the integer part, once it is complete, with the bound's."""
    return -1 if count < len(self.whole) else order

  def at_end(self, order: int, count: int) -> int:
    """Compares a complete number with `count` decimals with the bound."""
    return order or -(count < len(self.fraction))


class _State(NamedTuple):
  """A state of the automaton: what matters of the prefix of a number.

  Attributes:
    phase: 'first' (empty), 'minus', 'zero' (the integer part is 0), 'whole'
      (in the integer part), 'point' (at the decimal point) or 'fraction'.
    negative: whether it begins with a minus sign.
    digits: digits on this side of the decimal point.
    total: all digits.
    low: comparison with the least magnitude (-1, 0, 1).
    high: comparison with the greatest magnitude (-1, 0, 1).
  """

  phase: str = 'first'
  negative: bool = False
  digits: int = 0
  total: int = 0
  low: int = 0
  high: int = 0


class _Numbers:
  """Transitions of the automaton of numbers."""

  def __init__(
    self,
    least: Bound | None,
    most: Bound | None,
    whole: bool,
    max_digits: int,
  ):
    self._whole = whole
    self._max_digits = max_digits
    # Bounds of the magnitude of nonnegative and of negative numbers.
    self._bounds = (_sides(least, most, False), _sides(least, most, True))

  def row(self, state: _State) -> list[_State | None]:
    """Next state for each of `_TOKENS`."""
    digits = [self._after_digit(state, digit) for digit in _TOKENS[2:]]
    return [self._after_minus(state), self._after_point(state), *digits]

  def _after_minus(self, state: _State) -> _State | None:
    if state.phase != 'first':
      return None
    return _State('minus', negative=True)

  def _after_point(self, state: _State) -> _State | None:
    if self._whole or state.phase not in ('zero', 'whole'):
      return None
    low, high = self._bounds[state.negative]
    if state.total >= self._max_digits:
      return None
    return state._replace(
      phase='point',
      digits=0,
      low=low.at_point(state.low, state.digits) if low else 0,
      high=high.at_point(state.high, state.digits) if high else 0,
    )

  def _after_digit(self, state: _State, digit: str) -> _State | None:
    if state.phase == 'zero' or state.total >= self._max_digits:
      return None
    phase = {'point': 'fraction', 'fraction': 'fraction'}.get(
      state.phase, 'whole'
    )
    whole = phase == 'whole'
    if whole and not state.digits and digit == '0':
      phase = 'zero'
    low, high = self._bounds[state.negative]
    return _State(
      phase,
      state.negative,
      state.digits + 1,
      state.total + 1,
      low.step(state.low, state.digits, digit, whole) if low else 0,
      high.step(state.high, state.digits, digit, whole) if high else 0,
    )

  def accepts(self, state: _State) -> bool:
    """Whether a number may end in a state."""
    if state.phase not in ('zero', 'whole', 'fraction'):
      return False
    low, high = self._bounds[state.negative]
    return (
      low is None or self._order(state, low, state.low) >= low.strict
    ) and (high is None or self._order(state, high, state.high) <= -high.strict)

  @staticmethod
  def _order(state: _State, bound: _Digits, order: int) -> int:
    if state.phase == 'fraction':
      return bound.at_end(order, state.digits)
    return bound.at_end(bound.at_point(order, state.digits), 0)


def _sides(
  least: Bound | None, most: Bound | None, negative: bool
) -> tuple[_Digits | None, _Digits | None]:
  """Least and greatest magnitude of the numbers of one sign."""
  if negative:
    least, most = (
      bound and Bound(bound.value.copy_negate(), bound.strict)
      for bound in (most, least)
    )
  # Negative numbers have a magnitude above 0, since -0 is excluded.
  floor = Bound(Decimal(0), strict=negative)
  if least is None or (least.value, least.strict) < (floor.value, floor.strict):
    least = floor
  if most and most.value < 0:
    most = Bound(Decimal(0), strict=True)  # no number at all
  return _Digits.of(least), _Digits.of(most) if most else None


def numbers(
  least: Bound | None,
  most: Bound | None,
  whole: bool,
  multiple_of: int,
  budget: Budget,
) -> Dfa:
  """The DFA over code points of all numbers within bounds.

  Args:
    least: lower bound, or None.
    most: upper bound, or None.
    whole: allow integers only.
    multiple_of: allow only multiples of this integer.
    budget: budget of the compilation.
  """
  digits = _NUMBER_DIGITS
  if whole:
    bounds = [bound.value for bound in (least, most) if bound]
    lengths = [len(str(abs(math.trunc(value)))) for value in bounds]
    digits = max(_INTEGER_DIGITS, *lengths, 0)
  machine = _Numbers(least, most, whole, digits)

  def row_of(state: _State) -> list[_State | None]:
    budget.spend(_ROW_WORK)
    return machine.row(state)

  found = dfa.build(_State(), row_of, machine.accepts, _CLASSES, budget)
  if multiple_of == 1:
    return found
  return dfa.intersection(found, _multiples(multiple_of, budget), budget)


def _multiples(divisor: int, budget: Budget) -> Dfa:
  """The DFA of integers that are divisible by `divisor`."""

  def row_of(remainder: int) -> list[int | None]:
    digits = [(remainder * 10 + digit) % divisor for digit in range(10)]
    return [remainder, None, *digits]

  return dfa.build(0, row_of, lambda rest: not rest, _CLASSES, budget)
