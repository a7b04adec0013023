"""Reading windows into a cache: the one prefill."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import bucket
from craft_jax.model.cache import Cache
from craft_jax.model.protocol import Model
from craft_jax.types import Params

# Tokens that are read in one piece at most, where others wait for the device.
CHUNK = 256


@flax.struct.dataclass
class Prefix:
  """What the model has read of some windows.

  Attributes:
    cache: as long as the context.
    segment_B: document number of the last token.
  """

  cache: Cache
  segment_B: Int[Array, 'B']


@functools.partial(jax.jit, static_argnames='model')
def empty_prefix(model: Model) -> Prefix:
  """Of one window nothing has been read."""
  return Prefix(model.init_cache(1, model.context), jnp.zeros(1, jnp.int32))


def read(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  prefix: Prefix,
  ids: np.ndarray,
  longest: int,
) -> Prefix:
  """Reads further tokens of one window, without waiting for the device.

  Args:
    model: the model.
    vocabulary: its tokens.
    params: its parameters.
    prefix: what was read before.
    ids: the tokens, at least one.
    longest: as many as they may be.
  """
  T = bucket(len(ids), longest)
  chunk_BT = np.full((1, T), vocabulary.pad, np.int32)
  chunk_BT[0, : len(ids)] = ids
  device = next(iter(prefix.segment_B.devices()))
  arrays = jax.device_put((chunk_BT, np.array([len(ids)], np.int32)), device)
  return read_chunk(model, vocabulary, params, prefix, *arrays)


@functools.partial(jax.jit, static_argnames=('model', 'vocabulary'))
def read_chunk(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  prefix: Prefix,
  chunk_BT: Int[Array, 'B T'],
  length_B: Int[Array, 'B'],
) -> Prefix:
  """Reads further tokens of some windows; the prefix itself stays as it is.

  Args:
    model: the model.
    vocabulary: its tokens.
    params: its parameters.
    prefix: what was read before.
    chunk_BT: the tokens, padded to any T.
    length_B: how many they are; a window of 0 stays as it is.
  """
  real_BT = jnp.arange(chunk_BT.shape[1])[None] < length_B[:, None]
  begins_BT = ((chunk_BT == vocabulary.bos) & real_BT).astype(jnp.int32)
  segment_BT = prefix.segment_B[:, None] + jnp.cumsum(begins_BT, axis=1)
  # The logits are not used, so the head is compiled away.
  cache, _ = model.extend(params, prefix.cache, chunk_BT, length_B, segment_BT)
  return Prefix(cache, segment_BT[:, -1])
