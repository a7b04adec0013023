r"""Parses regular expressions into syntax trees.

The dialect is that of Python's `re` for str, with `\p{..}` added, and without
back-references, look-around, flags and word boundaries. docs/constraints.md
has the table.
"""

import dataclasses
import re
import string
from typing import NoReturn

from craft_jax.constrain import characters
from craft_jax.constrain.budget import MAX_DEPTH, Budget
from craft_jax.constrain.intervals import Intervals, complement, of_text, union
from craft_jax.constrain.nodes import (
  Anchor,
  Choice,
  Concat,
  Node,
  Repeat,
  Tokens,
  character,
)
from craft_jax.data.text.utf8 import MAX_CODE_POINT
from craft_jax.errors import UserError, hint

_DOT = complement(of_text('\n'))
_CONTROLS = {
  'a': 7, 'b': 8, 't': 9, 'n': 10, 'v': 11, 'f': 12, 'r': 13,
}  # fmt: skip
_HEX_DIGITS = {'x': 2, 'u': 4, 'U': 8}
_BOUNDS = re.compile(r'\{([0-9]*)(,?)([0-9]*)\}')
_NAMED_GROUP = re.compile(r'\?P?<([^<>=!()]*)>')
_STEP_WORK = 10  # operations per step of the parser
_MAX_DIGITS = 6  # digits of a bound; a longer one exceeds every limit anyway
# By what follows `(`; the longest match applies.
_UNSUPPORTED = {
  '?=': 'look-ahead',
  '?!': 'negative look-ahead',
  '?<=': 'look-behind',
  '?<!': 'negative look-behind',
  '?>': 'an atomic group',
  '?#': 'a comment',
  '?(': 'a conditional group',
  '?P=': 'a back-reference',
  '?P>': 'a recursive group',
  '?': 'a group with flags',
}


@dataclasses.dataclass
class _Group:
  """An open parenthesis, or the whole pattern."""

  position: int
  parts: list[Node] = dataclasses.field(default_factory=list)
  options: list[Node] = dataclasses.field(default_factory=list)

  def end_option(self) -> None:
    parts = self.parts
    self.options.append(parts[0] if len(parts) == 1 else Concat(tuple(parts)))
    self.parts = []

  def close(self) -> Node:
    self.end_option()
    options = self.options
    return options[0] if len(options) == 1 else Choice(tuple(options))


def parse(
  pattern: str, budget: Budget, name: str = 'pattern', dollar: str = 'line'
) -> Node:
  """Parses a pattern, to be matched as by `re.fullmatch`.

  Args:
    pattern: the regular expression.
    budget: budget of the compilation.
    name: what to call the pattern in error messages.
    dollar: meaning of `$`, as in `Anchor.where`.

  Raises:
    UserError: the pattern is invalid or unsupported; names the position,
      counted from 0.
  """
  return _Parser(pattern, budget, name, dollar).parse()


class _Parser:
  """A one-pass parser; a list of open groups makes recursion unnecessary."""

  def __init__(self, pattern: str, budget: Budget, name: str, dollar: str):
    self._pattern = pattern
    self._budget = budget
    self._name = name
    self._dollar = dollar
    self._at = 0
    self._groups = [_Group(0)]
    self._group_names: set[str] = set()
    self._repeats = 'nothing to repeat'  # why a repeat is invalid here, or ''

  def parse(self) -> Node:
    while self._at < len(self._pattern):
      self._budget.spend(_STEP_WORK)
      self._step()
    if len(self._groups) > 1:
      self._fail(
        'this ( is never closed',
        self._groups[-1].position,
        r'add a ) or use \(',
      )
    return self._groups[0].close()

  def _step(self) -> None:
    start, token = self._at, self._pattern[self._at]
    self._at += 1
    if token == '(':
      self._open(start)
    elif token == ')':
      self._close(start)
    elif token == '|':
      self._groups[-1].end_option()
      self._repeats = 'nothing to repeat'
    elif token in '*+?' or (token == '{' and self._is_bound(start)):
      self._repeat(start)
    elif token == '^':
      self._add_anchor('start', start)
    elif token == '$':
      self._add_anchor(self._dollar, start)
    elif token == '.':
      self._add(Tokens(_DOT))
    elif token == '[':
      self._add(Tokens(self._class(start)))
    elif self._pattern.startswith(('\\A', '\\Z'), start):
      where = 'start' if self._pattern[self._at] == 'A' else 'end'
      self._at += 1
      self._add_anchor(where, start)
    elif token == '\\':
      found = self._escape(start)
      if isinstance(found, int):
        self._add(character(chr(found)))
      else:
        self._add(Tokens(found))
    else:
      self._add(character(token))

  def _add(self, node: Node) -> None:
    self._groups[-1].parts.append(node)
    self._repeats = ''

  def _add_anchor(self, where: str, start: int) -> None:
    self._add(Anchor(where, start))
    self._repeats = 'an anchor cannot be repeated'

  def _open(self, start: int) -> None:
    rest = self._pattern[self._at : self._at + 200]
    named = _NAMED_GROUP.match(rest)
    if rest.startswith('?:'):
      self._at += 2
    elif named:
      name = named[1]
      if not name.isidentifier() or name in self._group_names:
        self._fail(
          f'{name!r} is not a name, or is used twice', start, 'rename it'
        )
      self._group_names.add(name)
      self._at += named.end()
    elif rest.startswith('?'):
      longest = max(filter(rest.startswith, _UNSUPPORTED), key=len)
      what = _UNSUPPORTED[longest]
      remedy = 'use plain groups ( ) and (?: )'
      self._fail(f'{what}, ({longest}, is not supported', start, remedy)
    if len(self._groups) > MAX_DEPTH:
      remedy = 'use fewer levels'
      self._fail(f'groups nest deeper than {MAX_DEPTH}', start, remedy)
    self._groups.append(_Group(start))
    self._repeats = 'nothing to repeat'

  def _close(self, start: int) -> None:
    if len(self._groups) == 1:
      self._fail('this ) closes nothing', start, r'remove it, or use \)')
    self._add(self._groups.pop().close())

  def _is_bound(self, start: int) -> bool:
    """Whether a repeat begins here; if not, `{` is an ordinary character."""
    bounds = _BOUNDS.match(self._pattern, start)
    return bool(bounds and (bounds[1] or bounds[2]))

  def _repeat(self, start: int) -> None:
    if self._repeats:
      self._fail(self._repeats, start, r'add what is repeated, or escape it')
    token = self._pattern[start]
    least, most = {'*': (0, None), '+': (1, None), '?': (0, 1)}.get(
      token, (0, None)
    )
    if token == '{':
      least, most = self._bounds(start)
    if self._pattern.startswith('?', self._at):
      self._at += 1  # lazy: the same language
    elif self._pattern.startswith('+', self._at):
      remedy = 'remove the second +'
      self._fail('a possessive repeat is not supported', start, remedy)
    parts = self._groups[-1].parts
    parts[-1] = Repeat(parts[-1], least, most)
    self._repeats = 'a repeat of a repeat; put a group around the first'

  def _bounds(self, start: int) -> tuple[int, int | None]:
    bounds = _BOUNDS.match(self._pattern, start)
    assert bounds, 'checked by _is_bound'
    if max(len(bounds[1]), len(bounds[3])) > _MAX_DIGITS:
      self._fail(
        f'a bound has more than {_MAX_DIGITS} digits', start, 'lower it'
      )
    self._at = bounds.end()
    least = int(bounds[1] or 0)
    if not bounds[2]:
      return least, least
    if not bounds[3]:
      return least, None
    if least > int(bounds[3]):
      self._fail('the bounds are the wrong way round', start, 'swap them')
    return least, int(bounds[3])

  def _class(self, start: int) -> Intervals:
    """The set of `[..]`, whose bracket is at `start`."""
    pattern = self._pattern
    negated = pattern.startswith('^', self._at)
    self._at += negated
    pairs: list[tuple[int, int]] = []
    first = self._at
    while not pattern.startswith(']', self._at) or self._at == first:
      at = self._at
      low = self._class_item(start)
      after = pattern[self._at + 1 : self._at + 2]
      if pattern.startswith('-', self._at) and after not in ('', ']'):
        self._at += 1
        high = self._class_item(start)
        if not isinstance(low, int) or not isinstance(high, int):
          self._fail('a range ends in a set', at, r'write - as \-')
        if low > high:
          self._fail('a range is the wrong way round', at, 'swap its ends')
        pairs.append((low, high))
        continue
      found = ((low, low),) if isinstance(low, int) else low
      self._budget.spend(len(found))
      pairs.extend(found)
    self._at += 1
    return complement(union(pairs)) if negated else union(pairs)

  def _class_item(self, start: int) -> int | Intervals:
    """Reads an item of `[..]`: a character, as its code point, or a set."""
    self._budget.spend(_STEP_WORK)
    if self._at >= len(self._pattern):
      self._fail('this [ is never closed', start, r'add a ] or use \[')
    at, token = self._at, self._pattern[self._at]
    self._at += 1
    return self._escape(at, True) if token == '\\' else ord(token)

  def _escape(self, start: int, in_class: bool = False) -> int | Intervals:
    """Reads an escape, whose backslash is at `start`."""
    if self._at >= len(self._pattern):
      self._fail('a backslash at the end', start, r'write it as \\')
    letter = self._pattern[self._at]
    self._at += 1
    if letter.lower() in {'d', 'w', 's'}:
      found = characters.shorthand(letter.lower())
      return found if letter.islower() else complement(found)
    if letter in 'pP':
      found = self._category(start)
      return found if letter == 'p' else complement(found)
    if letter in _CONTROLS and (letter != 'b' or in_class):
      return _CONTROLS[letter]
    if letter in _HEX_DIGITS:
      return self._hexadecimal(start, _HEX_DIGITS[letter])
    if letter == '0':
      digits = re.compile('[0-7]{0,2}').match(self._pattern, self._at)
      assert digits, 'may be empty'
      self._at = digits.end()
      return int(digits[0] or '0', 8)
    if letter in 'bB':
      self._fail(f'\\{letter}, a word boundary, is not supported', start)
    if letter in string.digits:
      what = r'a back-reference' if not in_class else 'an octal escape'
      self._fail(f'\\{letter}, {what}, is not supported', start)
    if letter in string.ascii_letters:
      self._fail(f'\\{letter} is not an escape', start, 'remove the \\')
    return ord(letter)

  def _hexadecimal(self, start: int, count: int) -> int:
    digits = self._pattern[self._at : self._at + count]
    self._at += count
    if len(digits) < count or not set(digits) <= set(string.hexdigits):
      letter = self._pattern[start + 1]
      self._fail(f'\\{letter} needs {count} hexadecimal digits', start)
    if int(digits, 16) > MAX_CODE_POINT:
      self._fail('a code point over U+10FFFF', start, 'lower it')
    return int(digits, 16)

  def _category(self, start: int) -> Intervals:
    braces = re.compile(r'\{([A-Za-z]{0,30})\}').match(self._pattern, self._at)
    name = braces[1] if braces else ''
    if braces is None or name not in characters.NAMES:
      known = hint(name, characters.NAMES)
      self._fail(
        f'{name!r} is not a Unicode category{known}', start, r'use \p{Lu}'
      )
    self._at = braces.end()
    return characters.category(name)

  def _fail(
    self, what: str, position: int, remedy: str = 'write it another way'
  ) -> NoReturn:
    raise UserError(f'{self._name}: {what}, at position {position}; {remedy}')
