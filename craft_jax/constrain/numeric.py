"""JSON numbers within bounds, digit by digit.

A number is written without an exponent, without leading zeros, and `-0` is
not. Integers have up to 18 digits (64 bits), or as many as a bound has.
Others have up to 15, those after the point included: so many digits survive
binary doubles, whence two numbers that differ in writing differ when read,
and comparing digits is comparing doubles.
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
_ROW_WORK = 60  # of a state, in operations
_TOKENS = '-.0123456789'
_CLASSES: tuple[Intervals, ...] = tuple(of_text(c) for c in _TOKENS)


@dataclasses.dataclass(frozen=True)
class Bound:
  """A limit of a number.

  Attributes:
    value: what a number is compared with.
    strict: whether it may not be equal.
  """

  value: Decimal
  strict: bool


@dataclasses.dataclass(frozen=True)
class _Digits:
  """A bound of the magnitude, as digits before and after the point."""

  whole: str
  fraction: str
  strict: bool

  @staticmethod
  def of(bound: Bound) -> '_Digits':
    text = f'{bound.value.copy_abs():f}'
    whole, _, fraction = text.partition('.')
    return _Digits(whole, fraction.rstrip('0'), bound.strict)

  def step(self, order: int, count: int, digit: str, whole: bool) -> int:
    """How a prefix compares (-1, 0, 1) once it has one more digit.

    Args:
      order: how it did until now.
      count: digits so far on this side of the point.
      digit: the next one.
      whole: whether it is before the point.
    """
    digits = self.whole if whole else self.fraction
    if whole and count >= len(digits):
      return 1  # longer, and without leading zeros
    other = digits[count] if count < len(digits) else '0'
    return order or (digit > other) - (digit < other)

  def at_point(self, order: int, count: int) -> int:
    """How the digits before the point compare, once there are no more."""
    return -1 if count < len(self.whole) else order

  def at_end(self, order: int, count: int) -> int:
    """How the number compares that has `count` digits after the point."""
    return order or -(count < len(self.fraction))


class _State(NamedTuple):
  """A prefix of a number.

  Attributes:
    phase: 'first' (nothing yet), 'minus', 'zero' (a 0 before the point),
      'whole', 'point' (just written) or 'fraction'.
    negative: whether it began with a minus.
    digits: those on this side of the point.
    total: digits in all.
    low: how it compares with the least magnitude.
    high: how it compares with the greatest.
  """

  phase: str = 'first'
  negative: bool = False
  digits: int = 0
  total: int = 0
  low: int = 0
  high: int = 0


class _Numbers:
  """The automaton of numbers: a state is a `_State`."""

  def __init__(
    self,
    least: Bound | None,
    most: Bound | None,
    whole: bool,
    max_digits: int,
  ):
    self._whole = whole
    self._max_digits = max_digits
    # Of the magnitudes of numbers without and with a minus.
    self._bounds = (_sides(least, most, False), _sides(least, most, True))

  def row(self, state: _State) -> list[_State | None]:
    """The next state for each of `_TOKENS`."""
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
    """Whether a number may end here."""
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
  """The least and the greatest magnitude of numbers of one sign."""
  if negative:
    least, most = (
      bound and Bound(bound.value.copy_negate(), bound.strict)
      for bound in (most, least)
    )
  # With a minus, more than nothing: -0 is not written.
  floor = Bound(Decimal(0), strict=negative)
  if least is None or (least.value, least.strict) < (floor.value, floor.strict):
    least = floor
  if most and most.value < 0:
    most = Bound(Decimal(0), strict=True)  # nothing
  return _Digits.of(least), _Digits.of(most) if most else None


def numbers(
  least: Bound | None,
  most: Bound | None,
  whole: bool,
  multiple_of: int,
  budget: Budget,
) -> Dfa:
  """The automaton, over code points, of the numbers within bounds.

  Args:
    least: lower bound, if any.
    most: upper bound, if any.
    whole: integers only.
    multiple_of: of integers; 1 is every integer.
    budget: of the compilation.
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
  """Digits, with or without a minus, that a number divides; no point."""

  def row_of(remainder: int) -> list[int | None]:
    digits = [(remainder * 10 + digit) % divisor for digit in range(10)]
    return [remainder, None, *digits]

  return dfa.build(0, row_of, lambda rest: not rest, _CLASSES, budget)
