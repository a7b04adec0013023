"""The device side: prefixes are read alone, slots are written together."""

import collections
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import bucket
from craft_jax.inference.engine import resident_constraints as tables_lib
from craft_jax.inference.sampling import decode as decode_lib
from craft_jax.inference.sampling import prefill as prefix_lib
from craft_jax.inference.sampling import slots as slots_lib
from craft_jax.inference.sampling.constraint_tables import Tables
from craft_jax.inference.sampling.decode import Written
from craft_jax.inference.sampling.generate import decoding_params
from craft_jax.inference.sampling.logits import RowSettings
from craft_jax.inference.sampling.options import SLOTS
from craft_jax.inference.sampling.output import setting_arrays
from craft_jax.inference.sampling.prefill import Prefix
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.slots import Slots
from craft_jax.inference.sampling.speculation import FIRST_ACCEPTANCE, Drafts
from craft_jax.model.protocol import Model
from craft_jax.runtime import keys
from craft_jax.types import Params

# What a row has beside its settings, its key as two numbers.
_FIELDS = ('last', 'position', 'chars', 'state', 'left')
_KEY = ('seed', 'sample')
# Options of one number each travel in two arrays: to the device an array costs
# about as much as a kilobyte more in it.
_FLOATS = tuple(name for name, dtype in SLOTS.items() if dtype == 'float32')
_INTS = tuple(name for name in SLOTS if name not in _FLOATS)


def pack(
  row: Mapping[str, int], settings: SampleSettings, vocabulary_size: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
  """A row as few arrays: its integers, its floats, and what is `[V]`."""
  columns = setting_arrays([settings], vocabulary_size)
  option = columns.pop('option')
  ints = [row[name] for name in _FIELDS]
  key = np.array([row[name] for name in _KEY], np.uint32)
  ints += key.view(np.int32).tolist()
  ints += [int(option[name][0]) for name in _INTS]
  floats = [option[name][0] for name in _FLOATS]
  return np.array(ints, np.int32), np.array(floats, np.float32), columns


@functools.partial(jax.jit, donate_argnames='slots')
def place(
  slots: Slots,
  prefix: Prefix,
  int_W: Int[Array, 'W'],
  float_R: Float[Array, 'R'],
  wide: dict[str, Array],
  slot: Int[Array, ''],
) -> Slots:
  """The slots with a text in one of them; the number is traced.

  Args:
    slots: donated.
    prefix: what the model has read of its window.
    int_W: see `pack`.
    float_R: see `pack`.
    wide: see `pack`.
    slot: where to.
  """
  int_WB = int_W[:, None]
  field = dict(zip((*_FIELDS, *_KEY, *_INTS), int_WB, strict=True))
  field |= dict(zip(_FLOATS, float_R[:, None], strict=True))
  seed_B, sample_B = (
    jax.lax.bitcast_convert_type(field[name], jnp.uint32) for name in _KEY
  )
  key_B = jax.vmap(lambda s, i: jax.random.fold_in(keys.from_seed(s), i))(
    seed_B, sample_B
  )
  option = {name: field[name].astype(dtype) for name, dtype in SLOTS.items()}
  one = Slots(
    cache=prefix.cache,
    segment_B=prefix.segment_B,
    acceptance_B=jnp.full(1, FIRST_ACCEPTANCE, jnp.float32),
    settings=RowSettings(option=option, key_B=key_B, **wide),
    **{f'{name}_B': field[name] for name in _FIELDS},
  )

  def put(all_B, one_B):
    if not jax.dtypes.issubdtype(all_B.dtype, jax.dtypes.prng_key):
      one_B = one_B.astype(all_B.dtype)
    return jax.lax.dynamic_update_slice_in_dim(all_B, one_B, slot, 0)

  return jax.tree.map(put, slots, one)


@functools.partial(
  jax.jit,
  static_argnames=('model', 'vocabulary', 'capacity', 'num_top', 'drafts'),
  donate_argnames='slots',
)
def decode(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  tables: Tables,
  slots: Slots,
  before_BC: Int[Array, 'B C'],
  limit_B: Int[Array, 'B'],
  fresh_B: Bool[Array, 'B'],
  num_steps: Int[Array, ''],
  capacity: int,
  num_top: int,
  drafts: Drafts | None,
) -> tuple[Slots, Written]:
  """`sampling.decode` of the rows that did not end in the dispatch before.

  So it can be issued before anybody has looked at that dispatch.

  Args:
    model: the model.
    vocabulary: its tokens.
    params: its parameters.
    tables: the constraints.
    slots: donated.
    before_BC: what the dispatch before wrote.
    limit_B: as there.
    fresh_B: rows inserted since, of which `before_BC` says nothing.
    num_steps: as there.
    capacity: C.
    num_top: as there.
    drafts: as there.
  """
  end_BC = (before_BC == vocabulary.bos) | (before_BC == vocabulary.eos)
  goes_B = fresh_B | ~jnp.any(end_BC, axis=1)
  return decode_lib.decode(
    model,
    vocabulary,
    params,
    tables,
    slots,
    jnp.where(goes_B, limit_B, 0),
    num_steps,
    capacity,
    num_top,
    drafts,
  )


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
    max_bytes: held at most; 0 is no cache.
    prefix_bytes: of one. All have room for a whole context, so that one
      executable serves them.

  Attributes:
    hits: tokens found instead of read.
  """

  def __init__(self, max_bytes: int, prefix_bytes: int):
    self._most = max_bytes // prefix_bytes
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
  ):
    self._model, self._vocabulary = model, vocabulary
    self._columns, self._num_top, self._drafts = columns, num_top, drafts
    self._params = decoding_params(model, params)
    self._device = next(iter(jax.tree.leaves(self._params)[0].devices()))
    self.store = tables_lib.TableStore(capacity, self._device)
    self.empty: Prefix = self._put(prefix_lib.empty_prefix(model))
    zero_B = np.zeros(slots, np.int32)
    settings = setting_arrays([SampleSettings()] * slots, vocabulary.size)
    self._slots = slots_lib.open_slots(
      model,
      *self._put(
        (zero_B, zero_B, zero_B, settings, *2 * [zero_B.astype(np.uint32)])
      ),
    )
    self._before_BC = self._put(
      np.full((slots, columns), vocabulary.pad, np.int32)
    )
    self._fresh_B = np.zeros(slots, bool)

  @property
  def prefix_bytes(self) -> int:
    """Of one prefix on the device."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.empty))

  def read(self, prefix: Prefix, ids: np.ndarray, longest: int) -> Prefix:
    """Reads `ids`, at most `longest`, after a prefix."""
    return prefix_lib.read(
      self._model, self._vocabulary, self._params, prefix, ids, longest
    )

  def insert(
    self, slot: int, prefix: Prefix, row: Mapping[str, int],
    settings: SampleSettings,
  ) -> None:  # fmt: skip
    """Puts a text into a slot; `row` has its numbers by name."""
    arrays = pack(row, settings, self._vocabulary.size)
    self._slots = place(
      self._slots, prefix, *self._put((*arrays, np.array(slot, np.int32)))
    )
    self._fresh_B[slot] = True

  def decode(self, slots: Mapping[int, int], steps: int) -> Written:
    """Writes into slots, so much at most; the answer is to be fetched."""
    limit_B = np.zeros(len(self._fresh_B), np.int32)
    limit_B[list(slots)] = list(slots.values())
    arrays = self._put((limit_B, self._fresh_B, np.array(steps, np.int32)))
    self._slots, written = decode(
      self._model,
      self._vocabulary,
      self._params,
      self.store.tables,
      self._slots,
      self._before_BC,
      *arrays,
      self._columns,
      self._num_top,
      self._drafts,
    )
    # Not cleared in place: the device may read the old array yet.
    self._fresh_B = np.zeros_like(self._fresh_B)
    self._before_BC = written.token_BC
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
    row = dict.fromkeys((*_FIELDS, *_KEY), 0)
    self.insert(0, self.empty, row, SampleSettings())
    self.store.warm()
    jax.block_until_ready(self.decode({}, 1))

  def _put(self, arrays):
    return jax.device_put(arrays, self._device)
