"""Syntax trees of patterns and schemas.

Nodes are compared by identity: a shared node stays shared, and comparing or
hashing never recurses into a deep tree.
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
  """The parts in sequence; without parts, the empty text."""

  parts: tuple['Node', ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
  """Any of the options; without options, no text at all."""

  options: tuple['Node', ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Repeat:
  """The body, `least` to `most` times; None is no upper limit."""

  body: 'Node'
  least: int
  most: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
  """Any path from place 0 to one of `ends` along edges (from, node, to)."""

  edges: tuple[tuple[int, 'Node', int], ...]
  ends: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Anchor:
  r"""The empty text, at the start or end of the whole text only.

  Attributes:
    where: 'start', 'end', or 'line', which is Python's `$`: the end, or before
      a line feed at the end.
    position: position in the pattern, for error messages.
  """

  where: str
  position: int


Node = Tokens | Concat | Choice | Repeat | Graph | Anchor

EMPTY = Concat(())


def literal(text: str) -> Node:
  """A node that matches exactly this text."""
  return Concat(tuple(map(character, text)))


@functools.lru_cache(maxsize=1024)
def character(token: str) -> Tokens:
  """A node that matches one character; shared, so it is encoded only once."""
  return Tokens(of_text(token))


def concat(*parts: Node) -> Node:
  """A node that matches the parts in sequence."""
  return Concat(parts)


def choice(*options: Node) -> Node:
  """A node that matches any of the options."""
  return options[0] if len(options) == 1 else Choice(options)
