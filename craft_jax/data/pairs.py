"""Prompts with completions as tokens, packed into windows.

The rule of tokens: a row is `BOS prompt EOS completion EOS`. The first EOS ends
the prompt and the second one the completion, so that a trained model continues
`BOS prompt EOS` with the completion and ends it with EOS. Every vocabulary has
both tokens, so any model of characters or bytes can be adapted to pairs.

The tokens of a split are windows of `context` tokens, which hold whole rows and
then PAD, and one PAD after the last window. What a batch needs follows from
these tokens: a segment begins at each BOS, and a target counts between the
first and the second EOS of its row.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from craft_jax.data import index
from craft_jax.data.text.vocabulary import Vocabulary

SPECIALS_PER_ROW = 3  # BOS, EOS, EOS
_SHUFFLE = 0x9A125  # key of the fixed order in which rows are packed


class Pair(NamedTuple):
  """A prompt and its completions, each once; several are all references."""

  prompt: str
  completions: tuple[str, ...]


def prompt_tokens(vocabulary: Vocabulary, prompt: str | bytes) -> np.ndarray:
  """`BOS prompt EOS`, which a completion follows, as 1-D token ids.

  Raises:
    UserError: a character is not in the vocabulary and its `unknown` is
      'error'.
  """
  bos, eos = np.array([[vocabulary.bos], [vocabulary.eos]], vocabulary.dtype)
  return np.concatenate([bos, vocabulary.encode(prompt), eos])


# --- batches -----------------------------------------------------------------


def segments(x_BT: Any, bos: int, xp: ModuleType) -> Any:
  """Number of the row (or document) of each token, int32 `[B, T]`, from 0 or 1.

  Args:
    x_BT: input tokens.
    bos: id of the token that each row begins with.
    xp: numpy or jax.numpy.
  """
  return xp.cumsum(x_BT == bos, axis=1, dtype=xp.int32)


def learnt(x_BT: Any, eos: int, xp: ModuleType) -> Any:
  """Whether each target is in a completion, or is the EOS after it.

  Windows hold whole rows with two EOS each, so that the number of EOS up to an
  input is odd from the first EOS of a row to the last token before the second.

  Args:
    x_BT: input tokens of whole windows of packed rows.
    eos: id of EOS.
    xp: numpy or jax.numpy.

  Returns:
    bool `[B, T]`.
  """
  return xp.cumsum(x_BT == eos, axis=1, dtype=xp.int32) % 2 == 1


def num_learnt(tokens: np.ndarray, vocabulary: Vocabulary) -> int:
  """Targets of a packed split that count: its completions, each with EOS."""
  return int(learnt(tokens[None, :-1], vocabulary.eos, np).sum())


# --- packing -----------------------------------------------------------------


class Places(NamedTuple):
  """Where rows are put.

  Attributes:
    window: number of the window of each row, int64 `[N]`.
    offset: first token of each row in its window, int64 `[N]`.
    num_windows: number of windows.
  """

  window: np.ndarray
  offset: np.ndarray
  num_windows: int


def places(lengths: np.ndarray, context: int) -> Places:
  """Packs rows into windows, each whole and exactly once.

  Rows come in a fixed pseudorandom order, and each is put into the open window
  with the least room that holds it (best fit), or else into a new one. The
  windows stay a random mix of rows, unlike those of rows sorted by length.

  Args:
    lengths: tokens of each row, from 1 to the context, int `[N]`.
    context: tokens of a window, T.
  """
  num_rows = len(lengths)
  key = np.full(num_rows, _SHUFFLE, np.uint32)
  rows = np.arange(num_rows, dtype=np.uint32)
  order = index.permute(rows, num_rows, key, np) if num_rows else rows
  windows: list[list[int]] = [[] for _ in range(context + 1)]  # by their room
  rooms = 0  # bit r is set if some window has room for exactly r tokens
  window, offset, num_windows = [], [], 0
  for length in lengths[order].tolist():
    fitting = rooms >> length
    if fitting:
      room = length + (fitting & -fitting).bit_length() - 1
      number = windows[room].pop()
      if not windows[room]:
        rooms ^= 1 << room
    else:
      room, number = context, num_windows
      num_windows += 1
    window.append(number)
    offset.append(context - room)
    windows[room - length].append(number)
    rooms |= 1 << room - length
  found = np.empty((2, num_rows), np.int64)
  found[:, order] = window, offset
  return Places(found[0], found[1], num_windows)


def row_lengths(
  vocabulary_kind: str, prompts: Sequence[str], completions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of each prompt and of each completion without specials, int64 `[N]`.

  Args:
    vocabulary_kind: 'byte' or 'char'.
    prompts: texts that UTF-8 can encode.
    completions: as many such texts.
  """
  size = len if vocabulary_kind == 'char' else _num_bytes
  prompt_N, completion_N = (
    np.fromiter(map(size, texts), np.int64, len(texts))
    for texts in (prompts, completions)
  )
  return prompt_N, completion_N


def _num_bytes(text: str) -> int:
  return len(text) if text.isascii() else len(text.encode('utf-8'))


def pack(
  vocabulary: Vocabulary,
  prompts: Sequence[str],
  completions: Sequence[str],
  context: int,
) -> np.ndarray:
  """Packs rows into windows of tokens.

  Args:
    vocabulary: vocabulary of the tokens.
    prompts: prompts of the rows, at least one.
    completions: their completions.
    context: tokens of a window, no less than those of the longest row.

  Returns:
    `[num_windows * context + 1]` of the vocabulary's dtype.

  Raises:
    UserError: a character is not in the vocabulary and its `unknown` is
      'error'.
  """
  prompt_N, completion_N = row_lengths(vocabulary.kind, prompts, completions)
  place = places(prompt_N + completion_N + SPECIALS_PER_ROW, context)
  start_N = place.window * context + place.offset
  first_N = start_N + 1 + prompt_N  # the first EOS
  tokens = np.full(
    place.num_windows * context + 1, vocabulary.pad, vocabulary.dtype
  )
  tokens[start_N] = vocabulary.bos
  tokens[first_N] = vocabulary.eos
  tokens[first_N + 1 + completion_N] = vocabulary.eos
  for texts, size_N, at_N in (
    (prompts, prompt_N, start_N + 1),
    (completions, completion_N, first_N + 1),
  ):
    before_N = np.cumsum(size_N) - size_N
    position = np.arange(size_N.sum()) + np.repeat(at_N - before_N, size_N)
    tokens[position] = vocabulary.encode(''.join(texts))
  return tokens


def rows_of(tokens: np.ndarray, vocabulary: Vocabulary) -> list[Pair]:
  """Recovers the rows of a packed split, joined by their prompts.

  Rows are in the order of the tokens, a fixed random one, and those of one
  prompt are a single `Pair`. Characters that became UNK are left out.

  Args:
    tokens: tokens of a packed split, 1-D.
    vocabulary: vocabulary of the tokens.
  """
  at = np.flatnonzero((tokens == vocabulary.bos) | (tokens == vocabulary.eos))
  start_N, middle_N, end_N = at[: len(at) // 3 * 3].reshape(-1, 3).T
  # Offsets in the decoded text of all tokens, which leaves specials out.
  before = np.concatenate([[0], np.cumsum(tokens < vocabulary.num_text_tokens)])
  if vocabulary.kind == 'byte':
    data = vocabulary.decode_bytes(tokens)
    pieces = _pieces(data, before, start_N, middle_N, end_N)
    texts = [[p.decode('utf-8', 'replace') for p in some] for some in pieces]
  else:
    text = vocabulary.decode(tokens)
    texts = _pieces(text, before, start_N, middle_N, end_N)
  found: dict[str, dict[str, None]] = {}
  for prompt, completion in zip(*texts, strict=True):
    found.setdefault(prompt, {})[completion] = None
  return [Pair(prompt, tuple(several)) for prompt, several in found.items()]


def _pieces(text, before, start_N, middle_N, end_N):
  """The prompts and the completions, cut out of the decoded text."""
  bounds = [before[at].tolist() for at in (start_N, middle_N, end_N)]
  return [
    [text[a:b] for a, b in zip(bounds[i], bounds[i + 1], strict=True)]
    for i in (0, 1)
  ]
