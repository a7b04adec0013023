"""JSON strings constrained by length, pattern and format."""

from craft_jax.constrain import dfa, regex
from craft_jax.constrain.budget import Budget
from craft_jax.constrain.dfa import Dfa
from craft_jax.constrain.document import at
from craft_jax.constrain.intervals import SCALARS, union
from craft_jax.constrain.nfa import Nfa
from craft_jax.constrain.nodes import (
  Graph,
  Node,
  Repeat,
  Tokens,
  character,
  concat,
)
from craft_jax.constrain.spelling import in_json

_YEAR = r'(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})'
_LEAP_YEAR = (
  r'(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])'
  r'|(?:0[48]|[2468][048]|[13579][26])00)'
)
_DATE = (
  rf'(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])'
  r'|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)'
  rf'|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)'
)
_CLOCK = r'(?:[01][0-9]|2[0-3]):[0-5][0-9]'
_TIME = rf'{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})'
_HEX = '[0-9a-fA-F]'
_BYTE = r'(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])'
_LABEL = r'[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*'
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
FORMATS = {
  'date': _DATE,  # RFC 3339, the Gregorian calendar from year 1
  'time': _TIME,  # RFC 3339, no leap seconds
  'date-time': f'{_DATE}T{_TIME}',
  'uuid': rf'{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}',
  'email': rf'{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+',
  'ipv4': rf'{_BYTE}(?:\.{_BYTE}){{3}}',
  'ipv6': rf'{_HEX}{{1,4}}(?::{_HEX}{{1,4}}){{7}}',  # all eight groups
}
_ANY = Repeat(Tokens(SCALARS), 0, None)
QUOTE = character('"')
# Any JSON string.
ANY_STRING = concat(QUOTE, Repeat(in_json(SCALARS), 0, None), QUOTE)


def string(
  least: int,
  most: int | None,
  pattern: str | None,
  format_name: str | None,
  place: str,
  budget: Budget,
) -> Node:
  """The expression of a JSON string, quotes included.

  Args:
    least: minimum number of characters.
    most: maximum number of characters, or None.
    pattern: regular expression that must match somewhere, or None; `$` matches
      only at the end of the string.
    format_name: a key of `FORMATS`, or None.
    place: JSON pointer to the schema, for error messages.
    budget: budget of the compilation.
  """
  if pattern is None and format_name is None:
    body: Node = Repeat(in_json(SCALARS), least, most)
    return concat(QUOTE, body, QUOTE)
  machines = []
  if format_name is not None:
    node = regex.parse(FORMATS[format_name], budget, f'format {format_name}')
    machines.append(_dfa(node, budget))
  if pattern is not None:
    node = regex.parse(pattern, budget, at(f'{place}/pattern'), 'end')
    machines.append(_dfa(concat(_ANY, node, _ANY), budget))
  if least or most is not None:
    machines.append(_dfa(Repeat(Tokens(SCALARS), least, most), budget))
  result = machines[0]
  for machine in machines[1:]:
    result = dfa.intersection(result, machine, budget)
  return concat(QUOTE, to_graph(result), QUOTE)


def _dfa(node: Node, budget: Budget) -> Dfa:
  """The DFA of an expression, over all code points."""
  nfa = Nfa(node, False, budget)
  return dfa.from_nfa(nfa, lambda low, high: True, budget)


def to_graph(machine: Dfa) -> Graph:
  """Converts a DFA over code points to a graph over JSON string spellings."""
  edges: list[tuple[int, Node, int]] = []
  for state, row in enumerate(machine.rows):
    to: dict[int, list[tuple[int, int]]] = {}
    for target, intervals in zip(row, machine.classes, strict=True):
      if target >= 0:
        to.setdefault(target, []).extend(intervals)
    edges.extend(
      (state, in_json(union(pairs)), target) for target, pairs in to.items()
    )
  ends = (k for k, accepts in enumerate(machine.accepting) if accepts)
  return Graph(tuple(edges), tuple(ends))
