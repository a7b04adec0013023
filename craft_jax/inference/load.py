"""A trained model from its run directory: all that `sample` and `eval` need."""

import os
from typing import NamedTuple

import jax
from etils import epath

from craft_jax.config.settings import CACHES, WEIGHTS, Config
from craft_jax.data.sources import cache_folder
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError, hint
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.protocol import Model
from craft_jax.model.quantize import quantize
from craft_jax.runs import checkpoint
from craft_jax.runtime import compilation_cache, jax_settings, keys
from craft_jax.runtime.files import check_place
from craft_jax.types import Params


class Trained(NamedTuple):
  """What a checkpoint gives back.

  Attributes:
    cfg: the config of the run.
    vocabulary: its tokens.
    model: built from both.
    params: averaged where the run kept an average, on the first device;
      rounded if that was asked for.
    meta: the rest: step, metrics, corpus fingerprint.
  """

  cfg: Config
  vocabulary: Vocabulary
  model: Model
  params: Params
  meta: checkpoint.Meta


@jax_settings.pinned()
def load_model(
  workdir: epath.PathLike,
  step: checkpoint.Which = 'latest',
  ema: bool = True,
  weights: str = 'auto',
  kv_cache: str = 'auto',
  warn: checkpoint.Warn | None = None,
) -> Trained:
  """Loads a checkpoint.

  Args:
    workdir: the run directory.
    step: a step, 'latest' or 'best'.
    ema: False takes the raw parameters even where the run averaged them.
    weights: 'int8' rounds them, see `model.quantize`.
    kv_cache: how keys and values are kept, see `model.build`.
    warn: told of damaged checkpoints that are passed over.

  Raises:
    UserError: no such checkpoint, or a damaged one; no such weights or cache.
  """
  for name, value, known in (
    ('weights', weights, WEIGHTS),
    ('kv_cache', kv_cache, CACHES),
  ):
    if value not in known:
      raise UserError(
        f'{name}={value!r} is none of {", ".join(known)}{hint(value, known)}'
      )
  check_place(workdir, 'workdir')
  workdir = os.path.expanduser(workdir)
  found = checkpoint.step_to_use(workdir, step, warn)
  meta = checkpoint.open_meta(workdir, found)
  compilation_cache.use(cache_folder(meta.config.data))
  device = jax.local_devices()[0]
  platform = platform_of(device)
  model = build(meta.config.model, meta.vocabulary.size, platform, kv_cache)
  place = jax.sharding.SingleDeviceSharding(device)
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    jax.eval_shape(model.init, keys.from_seed(0)),
  )
  params = checkpoint.restore_params(workdir, found, abstract, ema=ema)
  if weights == 'int8':
    params = jax.jit(quantize)(params)
  return Trained(meta.config, meta.vocabulary, model, params, meta)
