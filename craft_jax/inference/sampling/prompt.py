"""What a text goes on from: the tokens the model reads, and what is shown."""

import numpy as np

from craft_jax.data.pairs import prompt_tokens
from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import Vocabulary


def start_tokens(vocabulary: Vocabulary, documents: bool) -> np.ndarray:
  """What an empty prompt starts from: one token, never part of the text.

  BOS where the model was trained on several documents. A corpus without them
  never shows BOS to the model; then a newline, or where the vocabulary has
  none its most frequent token.
  """
  start = vocabulary.bos
  if not documents:
    newline = vocabulary.chars.find('\n') if vocabulary.chars else ord('\n')
    start = max(newline, 0)
  return np.array([start], vocabulary.dtype)


def encode_prompt(
  vocabulary: Vocabulary,
  prompt: str | bytes,
  documents: bool,
  data_format: str = 'text',
) -> np.ndarray:
  """The ids of a prompt.

  Args:
    vocabulary: of the model.
    prompt: the text.
    documents: whether the model was trained on several documents.
    data_format: `data.format` of the run. A model of pairs reads `BOS prompt
      EOS`; one of text the prompt alone, `start_tokens` for an empty one.

  Raises:
    UserError: a character outside the vocabulary, unless it replaces them.
  """
  if data_format == 'pairs':
    return prompt_tokens(vocabulary, prompt)
  if not prompt:
    return start_tokens(vocabulary, documents)
  return vocabulary.encode(prompt)


def show_prompt(vocabulary: Vocabulary, prompt: str | bytes) -> str:
  """The prompt as text, without an incomplete character at its end.

  The model may complete such a character, which then begins its text.
  """
  if isinstance(prompt, str):
    return prompt
  if vocabulary.kind == 'char':
    return prompt.decode('utf-8', 'replace')
  return StreamDecoder(vocabulary).feed(vocabulary.encode(prompt))
