"""The host side: prompts in, pieces of text out, dispatch by dispatch."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from craft_jax.errors import UserError
from craft_jax.model.transformer import Decoder
from craft_jax.sample import slots as slots_lib
from craft_jax.sample.settings import SampleSettings
from craft_jax.text.stream import StreamDecoder
from craft_jax.text.vocabulary import Vocabulary
from craft_jax.types import Params

STEPS_PER_DISPATCH = 32
_SMALLEST_BUCKET = 16
_UTF8_TAIL = 3  # bytes an incomplete character can have


@dataclasses.dataclass(frozen=True)
class Piece:
  """What one dispatch added to one sample.

  Attributes:
    row: index of the prompt.
    text: whole characters; may be ''.
    finish_reason: '' while it goes on; 'stop' if the model ended the text,
      'length' if it has all the characters asked for.
  """

  row: int
  text: str
  finish_reason: str


@dataclasses.dataclass
class _Row:
  """A text being written, as the host knows it.

  Attributes:
    window: the symbols the model may look at, the newest included; all but
      the newest are in the cache.
    decoder: holds back the bytes of an incomplete character.
    chars_left: characters still to write.
    live: whether it goes on.
  """

  window: list[int]
  decoder: StreamDecoder
  chars_left: int
  live: bool = True

  def take(self, ids: Sequence[int], ends: tuple[int, ...]) -> tuple[str, str]:
    """Adds the symbols of a dispatch; returns the text and finish reason."""
    end = next((i for i, symbol in enumerate(ids) if symbol in ends), None)
    ids = ids[:end]
    self.window.extend(ids)
    text = self.decoder.feed(ids)[: self.chars_left]
    self.chars_left -= len(text)
    reason = '' if end is None else 'stop'
    if not self.chars_left:
      reason = 'length'
    self.live = not reason
    return text, reason


def start_symbols(vocabulary: Vocabulary, documents: bool) -> np.ndarray:
  """What an empty prompt starts from: one symbol, never part of the text.

  BOS where the model was trained on several documents. A corpus without them
  never shows BOS to the model; then a newline, or where the vocabulary has
  none its most frequent symbol.
  """
  start = vocabulary.bos
  if not documents:
    newline = vocabulary.chars.find('\n') if vocabulary.chars else ord('\n')
    start = max(newline, 0)
  return np.array([start], vocabulary.dtype)


def encode_prompt(
  vocabulary: Vocabulary, prompt: str | bytes, documents: bool
) -> np.ndarray:
  """The ids of a prompt, `start_symbols` for an empty one.

  Raises:
    UserError: a character outside the vocabulary, unless it replaces them.
  """
  if not prompt:
    return start_symbols(vocabulary, documents)
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


def decoding_params(model: Decoder, params: Params) -> Params:
  """The parameters on one device, ready for many small products.

  Each layer becomes arrays of its own, which a step reads in place. Matrices
  are rounded to bfloat16 once if the model's policy rounds them in each product
  anyway: the same numbers from half the memory traffic.

  Args:
    model: the model.
    params: float32, replicated or sharded over devices of this process; or
      what this function gave, which it then gives back.
  """
  if isinstance(params.get('blocks'), tuple):
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
  return _ready(model, params)


@functools.partial(jax.jit, static_argnames='model')
def _ready(model: Decoder, params: Params) -> Params:
  params = params | {'blocks': model.layers(params)}
  if model.precision == 'float32':
    return params
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf.astype(jnp.bfloat16) if path[-1].key == 'kernel' else leaf
    ),
    params,
  )


def bucket(length: int, context: int) -> int:
  """The padded length of a prefill: a power of two, at most the context."""
  padded = max(_SMALLEST_BUCKET, 1 << max(length - 1, 0).bit_length())
  return min(padded, context)


def generate(
  model: Decoder,
  params: Params,
  vocabulary: Vocabulary,
  prompts: Sequence[np.ndarray],
  settings: SampleSettings | Sequence[SampleSettings],
  seed: int,
  max_chars: int,
  *,
  first_row: int = 0,
  steps_per_dispatch: int = STEPS_PER_DISPATCH,
) -> Iterator[list[Piece]]:
  """Continues every prompt, as one batch.

  The model sees the last `context` symbols of a prompt. When the next symbol
  finds the context full, the newer half of it is read afresh and the text
  goes on, so it may have any length. The key of a row is
  `fold_in(key(seed), first_row + row)`, and that of a symbol folds in its
  index in the text, the prompt included.

  Args:
    model: the model.
    params: its parameters.
    vocabulary: its symbols.
    prompts: ids, each with at least one; see `encode_prompt`.
    settings: of all prompts, or one per prompt.
    seed: from 0 to 2^32 - 1.
    max_chars: characters (code points) per sample, prompt excluded.
    first_row: number of the first row, to write a part of a batch again.
    steps_per_dispatch: symbols per row between pieces; changes no text.

  Yields:
    After each dispatch a `Piece` per row that was not finished before it.

  Raises:
    UserError: the seed or the number of characters is out of range.
  """
  if not 0 <= seed < 2**32:
    raise UserError(f'seed={seed} must be from 0 to {2**32 - 1}')
  if max_chars < 1:
    raise UserError(f'max_chars={max_chars} must be at least 1')
  if not prompts or not all(len(prompt) for prompt in prompts):
    raise ValueError('every prompt needs at least one symbol')
  if isinstance(settings, SampleSettings):
    settings = [settings] * len(prompts)
  if len(settings) != len(prompts):
    raise ValueError(f'{len(prompts)} prompts, {len(settings)} settings')
  params = decoding_params(model, params)
  return _generate(
    model, params, vocabulary, prompts, settings, seed, max_chars, first_row,
    steps_per_dispatch,
  )  # fmt: skip


def _generate(
  model, params, vocabulary, prompts, settings, seed, max_chars, first_row,
  capacity,
):  # fmt: skip
  device = next(iter(jax.tree.leaves(params)[0].devices()))
  context = model.cfg.context
  ends = (vocabulary.bos, vocabulary.eos)
  rows = []
  for prompt in prompts:
    decoder = StreamDecoder(vocabulary)
    decoder.feed(prompt[-_UTF8_TAIL:])  # it may end within a character
    rows.append(_Row(prompt[-context:].tolist(), decoder, max_chars))
  slots = slots_lib.open_slots(
    model,
    *jax.device_put(
      (
        np.array([len(prompt) for prompt in prompts], np.int32),
        np.array([s.temperature for s in settings], np.float32),
        np.array([s.top_k for s in settings], np.int32),
        np.array([s.top_p for s in settings], np.float32),
        np.array([s.end for s in settings], bool),
        np.array(seed, np.uint32),
        first_row + np.arange(len(rows), dtype=np.uint32),
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
    live = [row for row in rows if row.live]
    # A character is at least one symbol, so no row can be done before this.
    steps = min(
      capacity,
      max(row.chars_left for row in live),
      min(context + 1 - len(row.window) for row in live),
    )
    live_B, num_steps = jax.device_put(
      (np.array([row.live for row in rows]), np.array(steps, np.int32)), device
    )
    slots, out_BC = slots_lib.decode(
      model, vocabulary, params, slots, live_B, num_steps, capacity
    )
    written = jax.device_get(out_BC)[:, :steps].tolist()
    yield [
      Piece(i, *row.take(written[i], ends))
      for i, row in enumerate(rows)
      if row.live
    ]


def _read(model, vocabulary, params, slots, rows, which_B, device):
  """Reads the windows of the rows `which_B`, each but for its newest symbol."""
  longest = max(
    len(row.window) - 1
    for row, which in zip(rows, which_B, strict=True)
    if which
  )
  T = bucket(longest, model.cfg.context)
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
  model: Decoder,
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
