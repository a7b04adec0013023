"""Constraints on generated text, compiled to automata over token ids.

Nothing here imports JAX. docs/constraints.md lists what is supported.
"""

from craft_jax.constrain.automaton import Automaton, intersect
from craft_jax.constrain.compile import (
  compile_allowed,
  compile_choices,
  compile_regex,
  compile_schema,
  compile_without,
  valid_utf8,
)

__all__ = [
  'Automaton',
  'compile_allowed',
  'compile_choices',
  'compile_regex',
  'compile_schema',
  'compile_without',
  'intersect',
  'valid_utf8',
]
