"""How much a constraint may cost, counted in operations.

Nothing here looks at a clock: what is accepted does not depend on how busy
the machine is. docs/constraints.md has the times that go with the limits.
"""

from craft_jax.errors import UserError

MAX_DEPTH = 100  # groups within groups of a pattern
MAX_NODES = 25_000  # of an expression, its repeats written out
MAX_STATES = 12_000  # of an automaton, before it is minimised
MAX_WORK = 900_000  # operations of the whole compilation
_NODE_WORK = 6
MAX_ENTRIES = 1 << 24  # states times tokens: a table of 64 MiB


class Budget:
  """Counts what one compilation does, and ends it at the limits.

  Attributes:
    name: what is compiled, for the error.
    work: operations so far.
    nodes: nodes so far.
  """

  def __init__(self, name: str):
    self.name = name
    self.work = 0
    self.nodes = 0

  def spend(self, work: int) -> None:
    """Counts operations.

    Raises:
      UserError: more than `MAX_WORK`.
    """
    self.work += work
    if self.work > MAX_WORK:
      raise self._over(f'{MAX_WORK} operations')

  def add_node(self) -> None:
    """Counts a node of the expression.

    Raises:
      UserError: more than `MAX_NODES`.
    """
    self.nodes += 1
    self.spend(_NODE_WORK)
    if self.nodes > MAX_NODES:
      raise self._over(f'{MAX_NODES} nodes')

  def check_states(self, count: int) -> None:
    """Raises UserError if an automaton has more than `MAX_STATES`."""
    if count > MAX_STATES:
      raise self._over(f'{MAX_STATES} states')

  def check_table(self, states: int, size: int) -> None:
    """Raises UserError if a table has more than `MAX_ENTRIES`."""
    if states * size > MAX_ENTRIES:
      raise self._over(f'{MAX_ENTRIES} table entries ({states} x {size})')

  def _over(self, limit: str) -> UserError:
    return UserError(
      f'the {self.name} is too large: it needs more than {limit}; shorten its '
      'repeats, or split it'
    )
