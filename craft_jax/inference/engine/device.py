"""The device side: windows are read, slots are written together."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from craft_jax.constrain import Automaton
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import bucket
from craft_jax.inference.engine import resident_constraints as tables_lib
from craft_jax.inference.sampling import prefill as prefix_lib
from craft_jax.inference.sampling import slots as slots_lib
from craft_jax.inference.sampling.decode import Written, decode
from craft_jax.inference.sampling.prefill import Prefix
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import Drafts
from craft_jax.model.protocol import Model
from craft_jax.types import Params


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


class Text(NamedTuple):
  """What is put into a slot.

  Attributes:
    window: the tokens that the model sees, the newest included.
    row: see `slots.pack`.
    settings: how its tokens are chosen.
  """

  window: Sequence[int]
  row: Mapping[str, int]
  settings: SampleSettings


# In a slot that nobody uses.
_NONE = Text([0], slots_lib.EMPTY, SampleSettings())


class Row(NamedTuple):
  """What a dispatch wrote into a slot.

  Attributes:
    ids: the tokens.
    logprobs: see `Written`, as the next two.
    top: `[n, K]`.
    top_ids: `[n, K]`.
  """

  ids: list[int]
  logprobs: list[float]
  top: np.ndarray
  top_ids: np.ndarray


class PrefixCache:
  """Prefixes by their tokens, the least recently used leave first.

  Args:
    most: held at most. All have room for a whole context, so that one
      executable serves them.

  Attributes:
    hits: tokens found instead of read.
  """

  def __init__(self, most: int):
    self._most = most
    self._held: collections.OrderedDict[bytes, Prefix] = (
      collections.OrderedDict()
    )
    self.hits = 0

  def __len__(self) -> int:
    return len(self._held)

  def find(self, ids: np.ndarray, chunk: int) -> tuple[int, Prefix | None]:
    """The longest beginning of `ids` that is held, in whole chunks or all."""
    whole = len(ids) - len(ids) % chunk
    for length in (len(ids), *range(whole, 0, -chunk)):
      key = ids[:length].tobytes()
      if length and key in self._held:
        self._held.move_to_end(key)
        self.hits += length
        return length, self._held[key]
    return 0, None

  def keep(self, ids: np.ndarray, prefix: Prefix) -> None:
    """Holds what `ids` were read into."""
    if self._most:
      self._held[ids.tobytes()] = prefix
      self._held.move_to_end(ids.tobytes())
      if len(self._held) > self._most:
        self._held.popitem(last=False)


class Device:
  """Slots, tables and parameters on one device, and calls on them.

  No call waits for the device but `fetch`.

  Args:
    model: the model.
    params: its parameters.
    vocabulary: its tokens.
    slots: B.
    columns: C, tokens per slot and dispatch at most.
    num_top: most likely tokens that are reported beside each.
    drafts: which drafts are read ahead.
    capacity: of the tables of constraints.
    constraints: in the tables from the start.
  """

  def __init__(
    self,
    model: Model,
    params: Params,
    vocabulary: Vocabulary,
    slots: int,
    columns: int,
    num_top: int,
    drafts: Drafts | None,
    capacity: tables_lib.Capacity,
    constraints: Sequence[Automaton] = (),
  ):
    self._model, self._vocabulary = model, vocabulary
    self._columns, self._num_top, self._drafts = columns, num_top, drafts
    self._params = decoding_params(model, params)
    self._device = next(iter(jax.tree.leaves(self._params)[0].devices()))
    self.store = tables_lib.TableStore(capacity, self._device, constraints)
    self._num_slots = slots
    self._slots: slots_lib.Slots | None = None  # until there is a text

  @functools.cached_property
  def empty(self) -> Prefix:
    """Of which nothing has been read."""
    return self._put(prefix_lib.empty_prefix(self._model))

  @property
  def prefix_bytes(self) -> int:
    """Of one prefix on the device."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.empty))

  def read(self, prefix: Prefix, ids: np.ndarray, longest: int) -> Prefix:
    """Reads `ids`, at most `longest`, after a prefix."""
    return prefix_lib.read(
      self._model, self._vocabulary, self._params, prefix, ids, longest
    )

  def insert(self, slot: int, prefix: Prefix, text: Text) -> None:
    """Puts a text, whose window was read into a prefix, into a slot."""
    packed = self._packed([text])
    if self._slots is None:
      self._slots = slots_lib.open_slots(
        self._model,
        self._vocabulary.size,
        self._num_slots,
        self._put(np.zeros((), np.int32)),
      )
    slot_and_text = self._put((packed, np.array(slot, np.int32)))
    self._slots = slots_lib.place(self._slots, prefix, *slot_and_text)

  def fill(self, texts: Mapping[int, Text]) -> None:
    """Puts texts into slots, and reads their windows as one batch."""
    B = self._num_slots
    longest = max(len(text.window) for text in texts.values()) - 1
    T = bucket(longest, self._model.context)
    window_BT = np.full((B, T), self._vocabulary.pad, np.int32)
    length_B, which_B = np.zeros(B, np.int32), np.zeros(B, bool)
    for slot, text in texts.items():
      length_B[slot], which_B[slot] = len(text.window) - 1, True
      window_BT[slot, : length_B[slot]] = text.window[:-1]
    packed = self._packed([texts.get(slot, _NONE) for slot in range(B)])
    of = self._model, self._vocabulary, self._params
    if self._slots is None:
      arrays = self._put((packed, window_BT, length_B))
      self._slots = slots_lib.open_filled(*of, *arrays)
    else:
      arrays = self._put((packed, window_BT, length_B, which_B))
      self._slots = slots_lib.fill(*of, self._slots, *arrays)

  def decode(self, slots: Mapping[int, int], steps: int) -> Written:
    """Writes into slots, so much at most; the answer is to be fetched.

    A text that has ended is left alone, so this can be called before anybody
    has looked at what the call before has written.
    """
    assert self._slots is not None, 'no text was put into a slot'
    limit_B = np.zeros(self._num_slots, np.int32)
    limit_B[list(slots)] = list(slots.values())
    arrays = self._put((limit_B, np.array(steps, np.int32)))
    self._slots, written = decode(
      self._model,
      self._vocabulary,
      self._params,
      self.store.tables,
      self._slots,
      *arrays,
      self._columns,
      self._num_top,
      self._drafts,
    )
    return written

  def fetch(self, written: Written) -> list[Row]:
    """What each row wrote; waits for it."""
    count_B, id_BC, log_BC, top_BCK, top_id_BCK = jax.device_get(
      (
        written.count_B,
        written.token_BC,
        written.log_BC,
        written.top_BCK,
        written.top_id_BCK,
      )
    )
    return [
      Row(
        id_BC[row, :n].tolist(),
        log_BC[row, :n].tolist(),
        top_BCK[row, :n],
        top_id_BCK[row, :n],
      )
      for row, n in enumerate(count_B)
    ]

  def warm(self, chunk: int) -> None:
    """Compiles every program, for chunks of up to `chunk` tokens.

    Slots are written to, so nothing may be under way.
    """
    T = 0
    while chunk > T:
      T = bucket(T + 1, chunk)
      self.read(self.empty, np.zeros(T, np.int32), chunk)
    self.insert(0, self.empty, _NONE)
    self.store.warm()
    jax.block_until_ready(self.decode({}, 1))

  def _packed(self, texts: Sequence[Text]) -> slots_lib.Packed:
    return slots_lib.pack(
      [text.row for text in texts],
      [text.settings for text in texts],
      self._vocabulary.size,
    )

  def _put(self, arrays):
    return jax.device_put(arrays, self._device)
