"""Loads a trained model from its run directory."""

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
  """A trained model.

  Attributes:
    cfg: settings of the run.
    vocabulary: vocabulary of the run.
    model: the model.
    params: parameters on the first local device: the EMA if the run has one,
      quantized if requested.
    meta: other contents of the checkpoint: step, metrics, corpus fingerprint.
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
  """Loads a model from a checkpoint.

  Args:
    workdir: run directory.
    step: a step, 'latest' or 'best'.
    ema: use the EMA of the parameters if the run has one.
    weights: 'auto' or 'int8', which quantizes the matrices.
    kv_cache: data type of the KV cache, one of `CACHES`.
    warn: called with a message for each damaged checkpoint that is skipped.

  Raises:
    UserError: the checkpoint does not exist or is damaged, or `weights` or
      `kv_cache` is unknown.
  """
  for name, value, known in (
    ('weights', weights, WEIGHTS),
    ('kv_cache', kv_cache, CACHES),
  ):
    if value not in known:
      raise UserError(
        f'{name}={value!r} is not one of {", ".join(known)}{hint(value, known)}'
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
