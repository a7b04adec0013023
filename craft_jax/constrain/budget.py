"""Limits on the cost of compiling a constraint, counted in operations.

Counting operations instead of time makes the result independent of the load of
the machine. docs/constraints.md gives the times that the limits stand for.
"""

from craft_jax.errors import UserError

MAX_DEPTH = 100  # nested groups of a pattern
MAX_NODES = 25_000  # states of the NFA, with repeats expanded
MAX_STATES = 12_000  # states of a DFA before minimisation
MAX_WORK = 900_000  # operations of one compilation
_NODE_WORK = 6
MAX_ENTRIES = 1 << 24  # states x tokens: 64 MiB of int32


class Budget:
  """Counts the operations of one compilation and enforces the limits.

  Attributes:
    name: what is compiled, such as 'pattern', for error messages.
    work: operations so far.
    nodes: NFA states so far.
  """

  def __init__(self, name: str):
    self.name = name
    self.work = 0
    self.nodes = 0

  def spend(self, work: int) -> None:
    """Counts operations.

    Raises:
      UserError: there are more than `MAX_WORK`.
    """
    self.work += work
    if self.work > MAX_WORK:
      raise self._over(f'{MAX_WORK} operations')

  def add_node(self) -> None:
    """Counts a state of the NFA.

    Raises:
      UserError: there are more than `MAX_NODES`.
    """
    self.nodes += 1
    self.spend(_NODE_WORK)
    if self.nodes > MAX_NODES:
      raise self._over(f'{MAX_NODES} nodes')

  def check_states(self, count: int) -> None:
    """Raises `UserError` if a DFA has more than `MAX_STATES` states."""
    if count > MAX_STATES:
      raise self._over(f'{MAX_STATES} states')

  def check_table(self, states: int, size: int) -> None:
    """Raises `UserError` if a table has more than `MAX_ENTRIES` entries."""
    if states * size > MAX_ENTRIES:
      raise self._over(f'{MAX_ENTRIES} table entries ({states} x {size})')

  def _over(self, limit: str) -> UserError:
    return UserError(
      f'the {self.name} is too large: it needs more than {limit}; shorten its '
      'repeats, or split it'
    )
