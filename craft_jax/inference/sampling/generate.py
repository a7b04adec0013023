"""The host side: prompts in, pieces of text out, dispatch by dispatch."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import bucket
from craft_jax.errors import UserError
from craft_jax.inference.sampling import constraint_tables as tables_lib
from craft_jax.inference.sampling import slots as slots_lib
from craft_jax.inference.sampling.decode import decode
from craft_jax.inference.sampling.output import (
  Piece,
  Row,
  constraint_of,
  decoder_after,
  most_likely,
  setting_arrays,
)
from craft_jax.inference.sampling.prompt import encode_prompt
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import FORCED, Drafts
from craft_jax.model.protocol import Model
from craft_jax.types import Params

STEPS_PER_DISPATCH = 32


def decoding_params(model: Model, params: Params) -> Params:
  """The parameters on one device, arranged by `Model.for_decoding`.

  Args:
    model: the model.
    params: float32, replicated or sharded over devices of this process; or
      what this function gave, which it then gives back.
  """
  if model.is_for_decoding(params):
    return params
  leaf = jax.tree.leaves(params)[0]
  if not isinstance(leaf, jax.Array):
    raise TypeError(f'params must be JAX arrays, not {type(leaf).__name__}')
  device = min(leaf.addressable_shards, key=lambda s: s.device.id).device

  def place(leaf):
    if leaf.is_fully_replicated and not leaf.is_fully_addressable:
      leaf = leaf.addressable_data(0)
    return jax.device_put(leaf, device)

  # Gathering shards is meant, and may pass through the host.
  with jax.transfer_guard('allow'):
    params = jax.tree.map(place, params)
  return _for_decoding(model, params)


@functools.partial(jax.jit, static_argnames='model')
def _for_decoding(model: Model, params: Params) -> Params:
  return model.for_decoding(params)


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
  params = decoding_params(model, params)
  return _generate(
    model, params, vocabulary, prompts, wanted, seeds, chars, numbers,
    steps_per_dispatch, num_top, _useful(drafts, wanted),
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


def _generate(
  model, params, vocabulary, prompts, settings, seeds, max_chars, numbers,
  capacity, num_top, drafts,
):  # fmt: skip
  device = next(iter(jax.tree.leaves(params)[0].devices()))
  context = model.context
  ends = (vocabulary.bos, vocabulary.eos)
  rows = []
  for prompt, wanted, chars in zip(prompts, settings, max_chars, strict=True):
    window = prompt[-context:].tolist()
    decoder = decoder_after(vocabulary, prompt, wanted)
    rows.append(Row(window, decoder, chars, wanted.stop))
  automata, state_B, left_B = _constraints(vocabulary, rows, settings)
  tables, start_B = tables_lib.stack(automata, vocabulary.size, device)
  slots = slots_lib.open_slots(
    model,
    *jax.device_put(
      (
        np.array([len(prompt) for prompt in prompts], np.int32),
        start_B + state_B,
        left_B,
        setting_arrays(settings, vocabulary.size),
        np.array(seeds, np.uint32),
        np.array(numbers, np.uint32),
      ),
      device,
    ),
  )
  unread = np.ones(len(rows), bool)
  while any(row.live for row in rows):
    for i, row in enumerate(rows):
      if row.live and len(row.window) > context:
        row.window = row.window[-max(context // 2, 1) :]
        unread[i] = True
    if unread.any():
      slots = _read(model, vocabulary, params, slots, rows, unread, device)
      unread[:] = False
    # A character is at least one token, so no row is done before this.
    limit_B = np.array(
      [min(capacity, row.chars_left) if row.live else 0 for row in rows],
      np.int32,
    )
    limit_B, num_steps = jax.device_put((limit_B, limit_B.max()), device)
    slots, written = decode(
      model, vocabulary, params, tables, slots, limit_B, num_steps, capacity,
      top_bucket(num_top, vocabulary.size), drafts,
    )  # fmt: skip
    count, *out = jax.tree.map(
      np.ndarray.tolist, jax.tree.leaves(jax.device_get(written))
    )
    ids, logprobs, *top = out
    pieces = [
      row.take(i, ids[i][: count[i]], logprobs[i][: count[i]], ends)
      for i, row in enumerate(rows) if row.live
    ]  # fmt: skip
    yield [_with_top(piece, top, num_top) for piece in pieces]


def top_bucket(num_top: int, vocabulary_size: int) -> int:
  """How many the device finds: a number of few, since each is a program."""
  buckets = (0, min(20, vocabulary_size), vocabulary_size)
  return next(n for n in buckets if num_top <= n)


def _with_top(piece, top, num_top):
  """The piece with the first `num_top` of the most likely tokens."""
  if not num_top:
    return piece
  found = most_likely(top[1][piece.row], top[0][piece.row], num_top)
  return dataclasses.replace(piece, top=found[: len(piece.ids)])


def _constraints(vocabulary, rows, settings):
  """`constraint_of` each row: the automata, then two arrays."""
  found = [
    constraint_of(vocabulary, wanted, row.decoder, row.chars_left)
    for row, wanted in zip(rows, settings, strict=True)
  ]
  automata, state_B, left_B = zip(*found, strict=True)
  return automata, np.array(state_B, np.int32), np.array(left_B, np.int32)


def _read(model, vocabulary, params, slots, rows, which_B, device):
  """Reads the windows of the rows `which_B`, each but for its newest token."""
  longest = max(
    len(row.window) - 1
    for row, which in zip(rows, which_B, strict=True)
    if which
  )
  T = bucket(longest, model.context)
  window_BT = np.full((len(rows), T), vocabulary.pad, np.int32)
  length_B = np.zeros(len(rows), np.int32)
  last_B = np.zeros(len(rows), np.int32)
  for i in np.flatnonzero(which_B):
    *read, last_B[i] = rows[i].window
    window_BT[i, : len(read)] = read
    length_B[i] = len(read)
  arrays = jax.device_put((window_BT, length_B, last_B, which_B.copy()), device)
  return slots_lib.read(model, vocabulary, params, slots, *arrays)


def sample_text(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  prompt: str,
  chars: int,
  seed: int = 0,
  settings: SampleSettings | None = None,
  documents: bool = False,
) -> str:
  """The continuation of one prompt; see `generate` and `encode_prompt`."""
  pieces = generate(
    model,
    params,
    vocabulary,
    [encode_prompt(vocabulary, prompt, documents)],
    settings or SampleSettings(),
    seed,
    chars,
  )
  return ''.join(piece.text for (piece,) in pieces)
