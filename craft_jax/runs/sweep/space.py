"""What a sweep varies, as data: `KEY=V1,V2,...` and `KEY=LOW..HIGH`.

Pure, and the same on every machine: what is drawn depends on the seed alone.
"""

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from craft_jax.config import load as config_lib
from craft_jax.errors import UserError

_DIGITS = 4  # of a drawn number: it stands in names and on command lines
_TRIES = 100  # draws in a row that have all been before
_MOST_VALUES = 10_000  # of a range that is listed


def text_of(value: Any) -> str:
  """A value as a flag has it."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, (list, tuple)):
    return repr(tuple(value))
  return repr(value) if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of several values.

  Attributes:
    name: of the setting.
    values: of its type, each once.
    text: as it was asked for.
  """

  name: str
  values: tuple[Any, ...]
  text: str

  def listed(self) -> tuple[Any, ...]:
    """All values, for a grid."""
    return self.values

  ends = listed  # a check should see them all

  def at(self, share: float) -> Any:
    """The value at a place from 0 to below 1."""
    return self.values[int(share * len(self.values))]

  def snapped(self, text: str) -> Any:
    """The value that is written so."""
    return next(value for value in self.values if text_of(value) == text)


@dataclasses.dataclass(frozen=True)
class Range:
  """A number between two, both included.

  Attributes:
    name: of the setting.
    low: least.
    high: greatest; with a step the last one that is reached.
    whole: of integers.
    log: drawn evenly in the logarithm.
    step: between neighbours; None for any float, or integers in logarithm.
    text: as it was asked for.
  """

  name: str
  low: Decimal
  high: Decimal
  whole: bool
  log: bool
  step: Decimal | None
  text: str

  def listed(self) -> tuple[Any, ...]:
    """All values, for a grid.

    Raises:
      UserError: they cannot be counted.
    """
    if self.step is None:
      raise UserError(
        f'--set {self.name}={self.text} has no steps for a grid; list values '
        f'({self.name}={self.low},{self.high}), give a step '
        f'({self.name}={self.low}..{self.high}:STEP), or use --search=random'
      )
    return tuple(self._typed(self.low + i * self.step) for i in self._indices())

  def ends(self) -> tuple[Any, ...]:
    """The values that a check should see: the ends, and all with a step."""
    if self.step is not None:
      return self.listed()
    return (self._typed(self.low), self._typed(self.high))

  def at(self, share: float) -> Any:
    """The value at a place from 0 to below 1."""
    if self.step is not None:
      indices = self._indices()
      return self._typed(self.low + int(share * len(indices)) * self.step)
    low, high = float(self.low), float(self.high)
    if self.whole:  # each integer has its share of the line
      low, high = low - 0.5, high + 0.5
    if self.log:
      low, high = math.log(low), math.log(high)
    value = low + share * (high - low)
    return self.snapped(math.exp(value) if self.log else value)

  def snapped(self, value: float) -> Any:
    """The nearest value that the range has, with few digits."""
    if self.step is not None:
      index = round((Decimal(value) - self.low) / self.step)
      index = min(max(index, 0), len(self._indices()) - 1)
      return self._typed(self.low + index * self.step)
    digits = Decimal(f'{value:.0f}' if self.whole else f'{value:.{_DIGITS}g}')
    return self._typed(min(max(digits, self.low), self.high))

  def _indices(self) -> range:
    assert self.step is not None
    return range(int((self.high - self.low) / self.step) + 1)

  def _typed(self, value: Decimal) -> int | float:
    return int(value) if self.whole else float(value)


Dimension = Choice | Range


def parse(items: Iterable[str]) -> list[Dimension]:
  """Dimensions of `KEY=V1,V2`, `KEY=LOW..HIGH`, `...:STEP` and `...:log`.

  A comma within brackets does not separate.

  Raises:
    UserError: an unknown setting, one given twice, no values, a value of the
      wrong type or given twice, a range that is none.
  """
  kinds = {name: kind for name, kind, _ in config_lib.settings()}
  found: dict[str, Dimension] = {}
  for item in items:
    name, _, text = item.partition('=')
    if name not in kinds:
      config_lib.parse_overrides([f'{name}='])  # says so, with the nearest
    if not text.strip():
      raise UserError(f'--set {name} needs values: --set {name}=V1,V2')
    if name in found:
      raise UserError(f'--set {name} is given twice; put its values into one')
    if kinds[name] in (int, float) and '..' in text:
      found[name] = _range(name, text, kinds[name] is int)
    else:
      found[name] = _choice(name, text)
  return list(found.values())


def _choice(name: str, text: str) -> Choice:
  values: list[Any] = []
  for part in re.split(r',(?![^(\[]*[)\]])', text):
    value = config_lib.parse_overrides([f'{name}={part.strip()}'])[name]
    if value in values:
      raise UserError(f'--set {name}={text} has {part.strip()} twice')
    values.append(value)
  return Choice(name, tuple(values), text)


def _range(name: str, text: str, whole: bool) -> Range:
  flag = f'--set {name}={text}'
  low_text, _, rest = text.partition('..')
  high_text, _, more = rest.partition(':')
  try:
    low, high = Decimal(low_text), Decimal(high_text)
    step = None if more in ('', 'log') else Decimal(more)
  except InvalidOperation:
    raise UserError(
      f'{flag} is not a range; write LOW..HIGH, LOW..HIGH:STEP or '
      'LOW..HIGH:log, alone'
    ) from None
  numbers = [low, high, *([] if step is None else [step])]
  if not all(number.is_finite() for number in numbers):
    raise UserError(f'{flag}: the ends and the step must be finite')
  if whole and any(number != int(number) for number in numbers):
    raise UserError(f'{flag}: the setting is an integer')
  if low >= high:
    raise UserError(f'{flag}: the low end must be below the high end')
  if more == 'log' and low <= 0:
    raise UserError(f'{flag}: the logarithm needs a low end above 0')
  if step is not None and step <= 0:
    raise UserError(f'{flag}: the step must be above 0')
  if whole and more == '':
    step = Decimal(1)
  if step is not None:
    count = int((high - low) / step)
    if count >= _MOST_VALUES:
      raise UserError(f'{flag} has {count + 1:,} values; use :log or a step')
    high = low + count * step
  return Range(name, low, high, whole, more == 'log', step, text)


def grid(space: Sequence[Dimension]) -> list[dict[str, Any]]:
  """Every combination; the last dimension varies fastest.

  Raises:
    UserError: a range without steps.
  """
  return list(_product(space, [one.listed() for one in space]))


def corners(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
  """Combinations of all that can be listed, and of the ends of what cannot."""
  return _product(space, [one.ends() for one in space])


def _product(
  space: Sequence[Dimension], values: Sequence[Sequence[Any]]
) -> Iterator[dict[str, Any]]:
  names = [one.name for one in space]
  for row in itertools.product(*values):
    yield dict(zip(names, row, strict=True))


def draw(
  space: Sequence[Dimension], count: int, seed: int
) -> list[dict[str, Any]]:
  """Different random combinations; more of them begin with the same ones.

  Args:
    space: what varies.
    count: how many.
    seed: decides which.

  Raises:
    UserError: there are fewer.
  """
  generator = random.Random(seed)  # .random() never changes between versions
  found: list[dict[str, Any]] = []
  misses = 0
  while len(found) < count:
    point = {one.name: one.at(generator.random()) for one in space}
    if point not in found:
      found.append(point)
      misses = 0
    elif (misses := misses + 1) == _TRIES:
      raise UserError(
        f'--trials={count}, but only {len(found)} different combinations were '
        'found; ask for fewer, or use --search=grid'
      )
  return found
