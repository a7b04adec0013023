"""Prompts in, pieces of text out: an engine whose requests are all known."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.engine.device import decoding_params
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request
from craft_jax.inference.sampling.output import Piece
from craft_jax.inference.sampling.prompt import encode_prompt
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import FORCED, Drafts
from craft_jax.model.protocol import Model
from craft_jax.types import Params

STEPS_PER_DISPATCH = 32


def generate(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  prompts: Sequence[np.ndarray],
  settings: SampleSettings | Sequence[SampleSettings],
  seed: int | Sequence[int],
  max_chars: int | Sequence[int],
  *,
  first_row: int | Sequence[int] = 0,
  steps_per_dispatch: int = STEPS_PER_DISPATCH,
  num_top: int = 0,
  drafts: Drafts | None = FORCED,
) -> Iterator[list[Piece]]:
  """Continues every prompt, as one batch.

  The model sees the last `context` tokens of a prompt. When the next token
  finds the context full, the newer half of it is read afresh and the text
  goes on, so it may have any length. The key of a row is
  `fold_in(key(seed), first_row + row)`, and that of a token folds in its
  index in the text, the prompt included.

  Args:
    model: the model.
    params: its parameters.
    vocabulary: its tokens.
    prompts: ids, each with at least one; see `encode_prompt`.
    settings: of all prompts, or one per prompt.
    seed: from 0 to 2^32 - 1; of all prompts, or one per prompt.
    max_chars: characters (code points) per sample, prompt excluded; likewise.
    first_row: number of the first row, to write a part of a batch again; or
      the number of each row.
    steps_per_dispatch: tokens per row between pieces; changes no text.
    num_top: most likely tokens to report beside each that is written.
    drafts: which drafts are read ahead; None is none.

  Yields:
    After each dispatch a `Piece` per row that was not finished before it.

  Raises:
    UserError: the seed or the number of characters is out of range, or the
      shortest text of a constraint has more tokens than that.
  """
  if not prompts or not all(len(prompt) for prompt in prompts):
    raise ValueError('every prompt needs at least one token')
  number = len(prompts)
  wanted = _per_prompt('settings', settings, number)
  seeds = _per_prompt('seeds', seed, number)
  chars = _per_prompt('max_chars', max_chars, number)
  if isinstance(first_row, int):
    first_row = range(first_row, first_row + number)
  numbers = _per_prompt('row numbers', first_row, number)
  for each in zip(wanted, seeds, chars, strict=True):
    check_request(*each)
  batch = [
    Request(
      prompts[i], chars[i], wanted[i], seeds[i], first_sample=numbers[i],
      num_top=num_top, slide=True,
    )
    for i in range(number)
  ]  # fmt: skip
  return _pieces(
    model, decoding_params(model, params), vocabulary,
    steps=steps_per_dispatch, num_top=top_bucket(num_top, vocabulary.size),
    drafts=_useful(drafts, wanted), batch=batch,
  )  # fmt: skip


def _useful(
  drafts: Drafts | None, settings: Sequence[SampleSettings]
) -> Drafts | None:
  """None, a smaller program, where no constraint can force a token."""
  # That of UTF-8 always leaves a choice.
  bound = any(wanted.constraint is not None for wanted in settings)
  if drafts and not (drafts.match or drafts.layers or bound):
    return None
  return drafts


def _per_prompt(name, given, number):
  """A list, one per prompt, of what may be one of all."""
  if isinstance(given, int | SampleSettings):
    return [given] * number
  if len(given) != number:
    raise ValueError(f'{number} prompts, {len(given)} {name}')
  return given


def check_request(settings: SampleSettings, seed: int, max_chars: int) -> None:
  """Whether `generate` takes them.

  Raises:
    UserError: as it does.
  """
  if not 0 <= seed < 2**32:
    raise UserError(f'seed={seed} must be from 0 to {2**32 - 1}')
  if max_chars < 1:
    raise UserError(f'max_chars={max_chars} must be at least 1')
  least = settings.constraint.distance[0] if settings.constraint else 0
  if least > max_chars:
    raise UserError(
      f'max_chars={max_chars} is too short: the constraint needs at least '
      f'{least} tokens'
    )


def _pieces(*args, **more) -> Iterator[list[Piece]]:
  engine = Engine(*args, **more)  # takes no memory before the first piece
  while engine.busy:
    yield [dataclasses.replace(piece, row=row) for row, piece in engine.step()]


def top_bucket(num_top: int, vocabulary_size: int) -> int:
  """How many the device finds: a number of few, since each is a program."""
  buckets = (0, min(20, vocabulary_size), vocabulary_size)
  return next(n for n in buckets if num_top <= n)


def sample_text(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  prompt: str,
  chars: int,
  seed: int = 0,
  settings: SampleSettings | None = None,
  documents: bool = False,
  data_format: str = 'text',
) -> str:
  """The text that follows a prompt; see `generate` and `encode_prompt`."""
  pieces = generate(
    model,
    params,
    vocabulary,
    [encode_prompt(vocabulary, prompt, documents, data_format)],
    settings or SampleSettings(),
    seed,
    chars,
  )
  return ''.join(piece.text for (piece,) in pieces)
