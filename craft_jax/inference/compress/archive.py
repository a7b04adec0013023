"""The file format: what is in an archive, byte by byte.

Integers are little-endian.

  8     magic, `MAGIC`
  1     format, 1
  1     method: 0 the data as it is, 1 coded
  2     n, bytes of the conditions
  4     m, streams
  8     bytes of the data
  32    sha256 of the data
  32    sha256 of the parameters, as `craft inspect` gives it
  32    sha256 of the vocabulary
  n     the conditions: a JSON object of what the model's numbers depend on
  8 m   of each stream: values, bytes
        the data, or the streams one after the other
  4     CRC-32 of all before
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from craft_jax.errors import UserError
from craft_jax.runtime import strict_json

MAGIC = b'\x8fcraft\r\n'
FORMAT = 1
_STORED, _CODED = 0, 1
_HEAD = struct.Struct('<8sBBHIQ32s32s32s')
_STREAM = struct.Struct('<II')
_CHECK = struct.Struct('<I')
# A value can take next to no bits, but a byte of data never takes more than
# this: an escape, a length and itself.
_MOST_VALUES = 3


@dataclasses.dataclass(frozen=True)
class Archive:
  """What an archive holds.

  Attributes:
    size: bytes of the data.
    sha256: of the data.
    params_sha256: of the model, as `craft inspect` gives it.
    vocabulary_sha256: the fingerprint of its vocabulary.
    conditions: what the model's numbers depend on besides.
    stored: the data as it is, where that is shorter than its code; else None.
    lengths: values of each stream.
    streams: the code.
  """

  size: int
  sha256: bytes
  params_sha256: bytes
  vocabulary_sha256: bytes
  conditions: dict[str, Any]
  stored: bytes | None
  lengths: Sequence[int] = ()
  streams: Sequence[bytes] = ()

  @property
  def payload(self) -> bytes:
    """All but the headers."""
    return b''.join(self.streams) if self.stored is None else self.stored


def pack(archive: Archive) -> bytes:
  """The bytes of an archive."""
  text = strict_json.dumps(archive.conditions, separators=(',', ':')).encode()
  head = _HEAD.pack(
    MAGIC,
    FORMAT,
    _CODED if archive.stored is None else _STORED,
    len(text),
    len(archive.streams),
    archive.size,
    archive.sha256,
    archive.params_sha256,
    archive.vocabulary_sha256,
  )
  table = b''.join(
    _STREAM.pack(length, len(stream))
    for length, stream in zip(archive.lengths, archive.streams, strict=True)
  )
  data = b''.join([head, text, table, archive.payload])
  return data + _CHECK.pack(zlib.crc32(data))


def unpack(data: bytes, name: str = 'the file') -> Archive:
  """The archive in `data`.

  Args:
    data: the bytes.
    name: of the file, for the errors.

  Raises:
    UserError: no archive, one of another format, or a damaged one.
  """
  if data[: len(MAGIC)] != MAGIC:
    raise UserError(
      f'{name} is not an archive of craft compress; give the file it wrote'
    )
  if len(data) > len(MAGIC) and data[len(MAGIC)] != FORMAT:
    raise UserError(
      f'{name} is of format {data[len(MAGIC)]}, and this version reads '
      f'{FORMAT}; use the version of craft that wrote it'
    )
  body, check = data[: -_CHECK.size], data[-_CHECK.size :]
  if len(body) < _HEAD.size or _CHECK.unpack(check)[0] != zlib.crc32(body):
    raise damaged(name, 'its checksum is wrong')
  _, _, method, text_size, count, size, *digests = _HEAD.unpack_from(body)
  text_end = _HEAD.size + text_size
  table_end = text_end + count * _STREAM.size
  if method not in (_STORED, _CODED) or len(body) < table_end:
    raise damaged(name, 'its header makes no sense')
  try:
    conditions = json.loads(body[_HEAD.size : text_end])
  except (ValueError, RecursionError) as e:
    raise damaged(name, 'its header makes no sense') from e
  table = list(_STREAM.iter_unpack(body[text_end:table_end]))
  payload = body[table_end:]
  lengths = [length for length, _ in table]
  wanted = sum(bytes_ for _, bytes_ in table) if method == _CODED else size
  if (
    not isinstance(conditions, dict)
    or (method == _CODED and not table)
    or len(payload) != wanted
    or sum(lengths) > _MOST_VALUES * size
  ):
    raise damaged(name, 'its header makes no sense')
  streams, at = [], 0
  for _, stream_size in table:
    streams.append(payload[at : at + stream_size])
    at += stream_size
  stored = payload if method == _STORED else None
  sha256, params_sha256, vocabulary_sha256 = digests
  return Archive(
    size,
    sha256,
    params_sha256,
    vocabulary_sha256,
    conditions,
    stored,
    lengths,
    streams,
  )


def damaged(name: str, why: str) -> UserError:
  """The error of an archive that has changed since it was written."""
  return UserError(f'{name} is damaged: {why}; use another copy')
