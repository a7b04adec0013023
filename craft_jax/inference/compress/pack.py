"""Compresses bytes to an archive in memory, and decompresses them."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from typing import Any

import jax

from craft_jax.errors import UserError
from craft_jax.inference.compress import archive as archive_lib
from craft_jax.inference.compress import symbols
from craft_jax.inference.compress.archive import Archive
from craft_jax.inference.compress.codec import Codec, Damaged, Tick
from craft_jax.inference.load import Trained
from craft_jax.model.sharding.mesh import usable_cores
from craft_jax.runs.checkpoint import tree_sha256
from craft_jax.runtime import jax_settings


@dataclasses.dataclass(frozen=True)
class Packed:
  """An archive with statistics.

  Attributes:
    archive: the archive, in which the data may be stored uncompressed.
    coded_bytes: size of the encoded streams.
    ideal_bits: negative log2-probability of the data under the model.
    values: coded values in all streams.
    streams: number of streams.
  """

  archive: Archive
  coded_bytes: int
  ideal_bits: float
  values: int
  streams: int


@jax_settings.pinned()
def compress(
  data: bytes,
  trained: Trained,
  streams: int | None = None,
  tick: Tick = lambda done, total: None,
) -> Packed:
  """Compresses any bytes.

  Args:
    data: the bytes.
    trained: the model.
    streams: parts coded in parallel; by default `symbols.choose_streams`.
    tick: called with the number of steps done and of all steps.

  Raises:
    UserError: the model returns logits that are not finite.
  """
  if streams is None:
    streams = symbols.choose_streams(len(data))
  streams = max(1, min(streams, len(data)))
  codec = _codec(trained)
  values = [
    symbols.to_values(trained.vocabulary, part)
    for part in symbols.cut(data, streams)
  ]
  try:
    coded, ideal_bits = codec.encode(values, tick)
  except FloatingPointError as e:
    raise UserError(f'{e}; give another --step') from e
  archive = Archive(
    size=len(data),
    sha256=hashlib.sha256(data).digest(),
    **_digests(trained),
    conditions=conditions(trained, codec.start, streams),
    stored=None,
    lengths=[len(v) for v in values],
    streams=coded,
  )
  stored = dataclasses.replace(archive, stored=data, lengths=(), streams=())
  return Packed(
    min(archive, stored, key=lambda a: len(archive_lib.pack(a))),
    coded_bytes=len(archive.payload),
    ideal_bits=ideal_bits,
    values=sum(map(len, values)),
    streams=streams,
  )


@jax_settings.pinned()
def decompress(
  archive: Archive,
  trained: Trained,
  name: str = 'the archive',
  tick: Tick = lambda done, total: None,
) -> bytes:
  """Decompresses an archive and verifies the SHA-256 of the data.

  Args:
    archive: archive from `archive.unpack`.
    trained: the model that compressed it.
    name: name of the archive for error messages.
    tick: called with the number of steps done and of all steps.

  Raises:
    UserError: the archive was made with another model or on another kind of
      machine, or the result differs from the original data.
  """
  check_model(archive, trained, name)
  if archive.stored is not None:
    data = archive.stored
  else:
    codec = _codec(trained)
    here = conditions(trained, codec.start, len(archive.streams))
    check_conditions(archive.conditions, here, name)
    try:
      values = codec.decode(archive.streams, archive.lengths, tick)
      data = b''.join(symbols.to_bytes(trained.vocabulary, v) for v in values)
    except Damaged as e:
      raise _other_numbers(name, str(e)) from e
  if hashlib.sha256(data).digest() != archive.sha256:
    raise _other_numbers(name, 'the result has another sha256')
  return data


def conditions(trained: Trained, start: int, streams: int) -> dict[str, Any]:
  """Everything besides its parameters that a model's exact results depend on.

  `step` is for error messages only and is not compared.

  Args:
    trained: the model.
    start: id of the token before each text.
    streams: batch size.
  """
  device = jax.local_devices()[0]
  settings = dataclasses.asdict(trained.cfg.model)
  if settings['architecture'] == 'transformer':
    del settings['architecture']  # absent from older archives
  text = json.dumps(settings, sort_keys=True)
  found = {
    'step': trained.meta.step,
    'jax': jax.__version__,
    'jaxlib': importlib.metadata.version('jaxlib'),
    'device': device.device_kind,
    'precision': trained.model.policy.precision,
    'context': trained.model.context,
    'settings': hashlib.sha256(text.encode()).hexdigest()[:16],
    'start': start,
    'streams': streams,
  }
  if device.platform == 'cpu':
    # The number of threads divides matmuls, and so affects their rounding.
    found |= {'device': _processor(), 'cores': usable_cores()}
  else:
    found['runtime'] = ' '.join(device.client.platform_version.split())
  here = jax_settings.recorded(device.platform)
  return found | {'flags': here.pop('XLA_FLAGS', ''), **here}


def check_conditions(
  there: dict[str, Any], here: dict[str, Any], name: str
) -> None:
  """Raises `UserError` if the model's exact results may differ here."""
  for key in sorted((there.keys() | here.keys()) - {'step'}):
    if there.get(key) != here.get(key):
      raise UserError(
        f'{name} was made with {key} {there.get(key)!r}, and here it is '
        f'{here.get(key)!r}, which may round differently; decompress it where '
        'it was made'
      )


def check_model(archive: Archive, trained: Trained, name: str) -> None:
  """Raises `UserError` if the archive was made with another model."""
  here = _digests(trained)
  if archive.vocabulary_sha256 != here['vocabulary_sha256']:
    raise UserError(
      f'{name} was made with a model of another vocabulary '
      f'({archive.vocabulary_sha256.hex()[:12]}); give its --workdir'
    )
  if archive.params_sha256 != here['params_sha256']:
    raise UserError(
      f'{name} was made with other parameters '
      f'({archive.params_sha256.hex()[:12]}, step '
      f'{archive.conditions.get("step")}) than these '
      f'({here["params_sha256"].hex()[:12]}, step {trained.meta.step}); give '
      'its --workdir, --step and --no-ema'
    )


def _other_numbers(name: str, why: str) -> UserError:
  """The error for an intact archive that decompresses to wrong data."""
  return UserError(
    f'{name} does not decompress to the original data ({why}): the model '
    'computes other numbers here, or the archive was tampered with; decompress '
    'it where it was made'
  )


def _codec(trained: Trained) -> Codec:
  return Codec(
    trained.model, trained.params, trained.vocabulary, trained.meta.documents
  )


def _digests(trained: Trained) -> dict[str, bytes]:
  return {
    'params_sha256': bytes.fromhex(tree_sha256(trained.params)),
    'vocabulary_sha256': bytes.fromhex(trained.vocabulary.fingerprint),
  }


def _processor() -> str:
  """Name of the CPU and a digest of its instruction set."""
  name, flags = platform.processor() or platform.machine(), ''
  try:
    with open('/proc/cpuinfo') as f:
      lines = dict(
        [part.strip() for part in line.split(':', 1)]
        for line in f
        if ':' in line
      )
    name, flags = lines.get('model name', name), lines.get('flags', '')
  except OSError:
    pass  # not on macOS or Windows
  return f'{name} {hashlib.sha256(flags.encode()).hexdigest()[:8]}'
