"""Random patterns and texts, and many texts through an automaton at once."""

import numpy as np

LETTERS = 'ab0_ \n-é'
_ATOMS = [
  *'ab0_ -é', '.', r'\d', r'\w', r'\s', r'\D', r'\W', r'\S', '[ab]', '[^a]',
  '[a-c0]', r'[^\w]', r'[\d\-]', '[]a]', '[^]-]', r'[\s_]', r'\n', r'\x61',
  r'\u00e9', r'\-', '(?:)', '{', 'a{', r'\060', '[0-9_-]',
]  # fmt: skip
_REPEATS = [
  '*', '+', '?', '{2}', '{0}', '{1,}', '{0,2}', '{,2}', '{2,4}', '*?', '+?',
  '??', '{1,3}?', '{0,0}',
]  # fmt: skip
_ANCHORS = ['^', r'\A', r'\Z', '$']


def random_pattern(rng, depth=3, anchors=True):
  """A pattern of the dialect, as text."""
  kind = rng.random()
  if depth == 0 or kind < 0.3:
    return str(rng.choice(_ATOMS))
  if anchors and kind < 0.36:
    return str(rng.choice(_ANCHORS))
  if kind < 0.65:
    parts = rng.integers(1, 4)
    return ''.join(
      random_pattern(rng, depth - 1, anchors) for _ in range(parts)
    )
  if kind < 0.8:
    parts = [random_pattern(rng, depth - 1, anchors) for _ in range(2)]
    return f'(?:{"|".join(parts)})'
  group = rng.choice(['(', '(?:'])
  return (
    f'{group}{random_pattern(rng, depth - 1, anchors)}){rng.choice(_REPEATS)}'
  )


def random_texts(rng, count, most=9, letters=LETTERS):
  """Different texts, the short ones among them."""
  texts = {'', *letters}
  while len(texts) < count:
    length = rng.integers(0, most + 1)
    texts.add(''.join(rng.choice(list(letters), length)))
  return sorted(texts)


def as_matrix(vocabulary, texts):
  """The ids of the texts, `[texts, longest]`, -1 where one has ended."""
  rows = [vocabulary.encode(text).astype(np.int64) for text in texts]
  matrix = np.full((len(rows), max(map(len, rows), default=0)), -1)
  for k, row in enumerate(rows):
    matrix[k, : len(row)] = row
  return matrix


def accepted(automaton, matrix):
  """Which rows of `as_matrix` the table accepts, `[texts]` bool."""
  table = automaton.next_state
  state = np.zeros(len(matrix), np.int64)
  for column in matrix.T:
    step = np.where(state >= 0, table[state, column], -1)
    state = np.where(column >= 0, step, state)
  return (state >= 0) & automaton.accepting[state]


def random_text(automaton, rng, soft_limit=40):
  """The ids of a text of the language; past the limit it ends soon."""
  state, ids = 0, []
  while True:
    allowed = np.flatnonzero(automaton.next_state[state] >= 0)
    ends = bool(automaton.accepting[state])
    assert ends or len(allowed), 'a mask is empty'
    if ends and (not len(allowed) or rng.random() < 0.15):
      return ids
    if len(ids) >= soft_limit:
      return [*ids, *automaton.shortest_completion(state).tolist()]
    # Classes first, so that letters do not drown quotes and brackets.
    token_class = automaton.token_class[allowed]
    chosen = rng.choice(np.unique(token_class))
    ids.append(int(rng.choice(allowed[token_class == chosen])))
    state = int(automaton.next_state[state, ids[-1]])
