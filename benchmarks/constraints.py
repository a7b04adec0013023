"""How long does it take to compile a constraint, or to refuse one?

Patterns, schemas and choices, each compiled from scratch for a vocabulary of
bytes and for one of printable ASCII. Work is the counted operations that the
limits are about (`craft_jax.constrain.budget`); a hostile constraint ends in an
error when they are used up. The first round, not counted, also fills the tables
of Unicode that a process makes once, and the cache of the case that is found
there.

  python benchmarks/constraints.py [--pairs 7]
"""

import functools
import gc
import statistics
import string
from collections.abc import Callable
from typing import Any

import measure

from craft_jax.constrain import compile as compiling
from craft_jax.constrain import compile_choices, compile_regex, compile_schema
from craft_jax.constrain.automaton import Automaton
from craft_jax.constrain.cache import Cache
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

_BAR = 1000.0  # milliseconds
_PERSON = {
  'type': 'object',
  'properties': {
    'name': {'type': 'string', 'minLength': 1, 'maxLength': 40},
    'born': {'type': 'string', 'format': 'date'},
    'height': {'type': 'number', 'minimum': 0, 'exclusiveMaximum': 3},
    'languages': {
      'type': 'array',
      'items': {'enum': ['English', 'French', 'Hindi']},
      'maxItems': 5,
    },
    'mail': {'type': ['string', 'null'], 'format': 'email', 'maxLength': 64},
  },
  'required': ['name', 'born'],
}
_RECURSIVE = {
  '$ref': '#/$defs/tree',
  '$defs': {'tree': {'type': 'array', 'items': {'$ref': '#/$defs/tree'}}},
}
_KEPT = Cache(max_count=64, max_entries=1 << 24)


def from_cache(document: Any, vocabulary: Vocabulary) -> Automaton:
  """A schema that was compiled before, as any second request finds it."""
  forgetful, compiling._CACHE = compiling._CACHE, _KEPT
  try:
    return compile_schema(document, vocabulary)
  finally:
    compiling._CACHE = forgetful


_CASES: dict[str, tuple[Callable[..., Automaton], Any]] = {
  'e-mail pattern': (compile_regex, r'[a-z0-9.]+@[a-z0-9]+(\.[a-z]{2,4})+'),
  'words': (compile_regex, r'\w+( \w+)*'),
  '[ab]*a[ab]{10}': (compile_regex, '[ab]*a[ab]{10}'),
  'a{0,5000}': (compile_regex, 'a{0,5000}'),
  '500 choices': (compile_choices, [f'choice {k}' for k in range(500)]),
  'string of 256': (compile_schema, {'type': 'string', 'maxLength': 256}),
  'integer in range': (compile_schema, {'type': 'integer', 'maximum': 2**31}),
  'number': (compile_schema, {'type': 'number'}),
  'person': (compile_schema, _PERSON),
  'person, cached': (from_cache, _PERSON),
  'any JSON': (compile_schema, {}),
  '[ab]*a[ab]{20}': (compile_regex, '[ab]*a[ab]{20}'),
  'a{1,100000}': (compile_regex, 'a{1,100000}'),
  '(a|aa|aaa){1,200}..': (compile_regex, '(a|aa|aaa){1,200}[a-z]{50}'),
  '(a?b?c?d?){300}': (compile_regex, '(a?b?c?d?){300}'),
  '10000 deep': (compile_regex, '(' * 10_000 + ')' * 10_000),
  'million characters': (compile_regex, 'a' * 1_000_000),
  'recursive $ref': (compile_schema, _RECURSIVE),
}


def attempt(
  compiler: Callable[..., Automaton], constraint: Any, vocabulary: Vocabulary
) -> dict[str, Any]:
  """The milliseconds it takes, and what comes of it."""
  found: dict[str, Any] = {'states': None, 'classes': None, 'work': None}

  def run() -> None:
    try:
      automaton = compiler(constraint, vocabulary)
    except UserError as e:
      found['refused'] = str(e)
    else:
      found['states'], found['classes'] = automaton.class_next.shape
      found['work'] = automaton.work

  found['milliseconds'] = 1e3 * measure.seconds_of(run)
  return found


def main() -> None:
  """Prints the times; the bar of each is a second."""
  args = measure.arguments(__doc__ or '', 7).parse_args()
  vocabularies = {
    'byte': Vocabulary.byte(),
    'char': Vocabulary('char', string.printable),
  }
  cases = {
    f'{name} ({kind})': functools.partial(attempt, *case, vocabulary)
    for kind, vocabulary in vocabularies.items()
    for name, case in _CASES.items()
  }
  # Nothing is kept from one round to the next.
  compiling._CACHE = Cache(max_count=0, max_entries=0)
  # JAX, which `measure` imports, has many objects; to look through them for
  # garbage is no part of compiling.
  gc.freeze()
  rounds = measure.in_turns(cases, args.pairs)
  question = (__doc__ or '').splitlines()[0]
  print(question, measure.hardware(), sep='\n')
  print(f'{"constraint":28}{"ms":>8}{"spread":>8}{"states":>8}{"work":>9}')
  rows = {}
  for name, results in rounds.items():
    times = [result['milliseconds'] for result in results]
    row = results[0] | {
      'milliseconds': statistics.median(times),
      'spread': measure.spread(times),
      'bar': _BAR,
    }
    rows[name] = row
    print(
      f'{name:28}{row["milliseconds"]:8.1f}{row["spread"]:8.1%}'
      + (
        f'  refused: {row["refused"][:80]}'
        if 'refused' in row
        else f'{row["states"]:8}{row["work"]:9}'
      )
    )
  measure.conclude(question, args.pairs, rows, bars='milliseconds at most')


if __name__ == '__main__':
  main()
