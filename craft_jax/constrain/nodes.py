"""Expressions: what patterns and schemas are read into.

A node is compared by identity, so that a shared part stays shared and no
operation descends into a deep expression.
"""

import dataclasses
import functools

from craft_jax.constrain.intervals import Intervals, of_text


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
  """One character of a set of code points."""

  intervals: Intervals


@dataclasses.dataclass(frozen=True, eq=False)
class Concat:
  """The parts, one after the other; none is the empty text."""

  parts: tuple['Node', ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
  """Any of the options; none matches nothing at all."""

  options: tuple['Node', ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Repeat:
  """The body, `least` to `most` times; None is without limit."""

  body: 'Node'
  least: int
  most: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
  """A way from place 0 to one of `ends` along edges (from, node, to)."""

  edges: tuple[tuple[int, 'Node', int], ...]
  ends: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Anchor:
  r"""The empty text, at one place only.

  Attributes:
    where: 'start' or 'end' of the whole text; 'line' is the `$` of Python,
      which is also true before a line feed at the end.
    position: in the pattern, for errors.
  """

  where: str
  position: int


Node = Tokens | Concat | Choice | Repeat | Graph | Anchor

EMPTY = Concat(())


def literal(text: str) -> Node:
  """Exactly this text."""
  return Concat(tuple(map(character, text)))


@functools.lru_cache(maxsize=1024)
def character(token: str) -> Tokens:
  """Exactly this character; shared, so that its UTF-8 is found once."""
  return Tokens(of_text(token))


def concat(*parts: Node) -> Node:
  """The parts, one after the other."""
  return Concat(parts)


def choice(*options: Node) -> Node:
  """Any of the options."""
  return options[0] if len(options) == 1 else Choice(options)
