"""Compiles constraints to automata, with a cache."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from craft_jax.constrain import dfa, regex, schema
from craft_jax.constrain.alphabet import Alphabet
from craft_jax.constrain.automaton import Automaton, from_dfa
from craft_jax.constrain.budget import MAX_ENTRIES, Budget
from craft_jax.constrain.cache import Cache
from craft_jax.constrain.document import check_document
from craft_jax.constrain.intervals import SCALARS, of_text, union
from craft_jax.constrain.nfa import Nfa
from craft_jax.constrain.nodes import Node, Repeat, Tokens, choice, literal
from craft_jax.constrain.spelling import require
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

_CACHE = Cache(max_count=64, max_entries=4 * MAX_ENTRIES)


def compile_regex(pattern: str, vocabulary: Vocabulary) -> Automaton:
  """Compiles a regular expression, matched as by `re.fullmatch`.

  Args:
    pattern: pattern in the dialect of docs/constraints.md.
    vocabulary: vocabulary of the model. Characters outside it are never
      allowed; with bytes the text is valid UTF-8.

  Raises:
    UserError: the pattern is invalid or unsupported, matches no text, or
      exceeds the budget.
  """

  def node_of(budget: Budget) -> Node:
    return regex.parse(pattern, budget)

  return _compiled('pattern', pattern, vocabulary, node_of)


def compile_schema(document: Any, vocabulary: Vocabulary) -> Automaton:
  """Compiles a JSON schema; its instances are written as compact JSON.

  Args:
    document: the schema as parsed by `json.loads`.
    vocabulary: vocabulary of the model.

  Raises:
    UserError: the schema is invalid or has an unsupported keyword, no instance
      can be written, or it exceeds the budget.
  """
  check_document(document, Budget('schema'))

  def node_of(budget: Budget) -> Node:
    return schema.parse(document, vocabulary, budget)

  # Properties are written in the order of the schema, so keys are not sorted.
  key = json.dumps(document)
  return _compiled('schema', key, vocabulary, node_of)


def compile_choices(
  choices: Sequence[str], vocabulary: Vocabulary
) -> Automaton:
  """Compiles a list of allowed texts.

  Raises:
    UserError: the list is empty, the vocabulary cannot write one of the texts,
      or they exceed the budget.
  """
  if isinstance(choices, str) or not choices:
    raise UserError('choices must be a list of at least one text')

  def node_of(budget: Budget) -> Node:
    for k, text in enumerate(choices):
      budget.spend(len(text))
      require(text, vocabulary, f'choice {k}')
    return choice(*(literal(text) for text in choices))

  key = tuple(choices)
  return _compiled('list of choices', key, vocabulary, node_of)


def compile_allowed(characters: str, vocabulary: Vocabulary) -> Automaton:
  """Compiles a set of allowed characters; texts of any length are allowed.

  Raises:
    UserError: the vocabulary lacks one of the characters.
  """

  def node_of(budget: Budget) -> Node:
    budget.spend(len(characters))
    require(characters, vocabulary, 'allowed characters')
    return Repeat(Tokens(of_text(characters)), 0, None)

  name = 'set of allowed characters'
  return _compiled(name, characters, vocabulary, node_of)


def compile_without(
  strings: Sequence[str], vocabulary: Vocabulary
) -> Automaton:
  """Compiles a list of forbidden strings, which must not occur in a text.

  The states are those of Aho and Corasick (1975): the longest suffix of the
  text that is a prefix of one of the strings.

  Raises:
    UserError: the list or a string is empty, or they exceed the budget.
  """
  if isinstance(strings, str) or not strings or not all(strings):
    raise UserError(
      'forbidden strings must be a list of at least one text, none empty'
    )
  name = 'list of forbidden strings'
  # A string with a character that the vocabulary lacks cannot occur.
  words = {
    tuple(vocabulary.encode(text).tolist())
    for text in strings
    if vocabulary.kind == 'byte' or set(text) <= set(vocabulary.chars)
  }

  def compile_it() -> Automaton:
    budget = Budget(name)
    budget.spend(sum(len(word) ** 2 for word in words))
    starts = {word[:n] for word in words for n in range(len(word))}
    used = sorted({token for word in words for token in word})
    rest = [s for s in range(vocabulary.num_text_tokens) if s not in set(used)]
    classes = [union([(token, token)]) for token in used]
    if rest:
      classes.append(union((token, token) for token in rest))

    def after(text: tuple[int, ...]) -> tuple[int, ...] | None:
      ends = [text[n:] for n in range(len(text) + 1)]
      budget.spend(len(ends))
      if any(end in words for end in ends):
        return None
      return next(end for end in ends if end in starts)

    def row_of(text: tuple[int, ...]) -> list[tuple[int, ...] | None]:
      row = [after((*text, token)) for token in used]
      return [*row, ()] if rest else row

    first: tuple[int, ...] = ()
    found = dfa.build(first, row_of, lambda text: True, tuple(classes), budget)
    return from_dfa(found, Alphabet.of_ids(vocabulary.size), budget)

  key = tuple(sorted(strings))
  return _CACHE.get((name, key, vocabulary.fingerprint), compile_it)


def valid_utf8(vocabulary: Vocabulary) -> Automaton:
  """The automaton of all valid UTF-8.

  Raises:
    UserError: the vocabulary is one of characters, not bytes.
  """
  if vocabulary.kind != 'byte':
    raise UserError(
      'valid UTF-8 is a constraint on bytes, and this vocabulary is of '
      'characters; remove it'
    )

  def node_of(budget: Budget) -> Node:
    return Repeat(Tokens(SCALARS), 0, None)

  return _compiled('UTF-8 constraint', '', vocabulary, node_of)


def _compiled(
  name: str,
  key: str | tuple[str, ...],
  vocabulary: Vocabulary,
  node_of: Callable[[Budget], Node],
) -> Automaton:
  """Compiles an expression to an automaton, or takes it from the cache."""

  def compile_it() -> Automaton:
    budget = Budget(name)
    alphabet = Alphabet.of(vocabulary)
    nfa = Nfa(node_of(budget), alphabet.is_utf8, budget)
    return from_dfa(
      dfa.from_nfa(nfa, alphabet.occurs, budget), alphabet, budget
    )

  return _CACHE.get((name, key, vocabulary.fingerprint), compile_it)
