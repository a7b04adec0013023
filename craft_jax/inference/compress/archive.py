"""The file format of archives.

Integers are little-endian. The fields with their sizes in bytes:

  8     magic number, `MAGIC`
  1     format version, 1
  1     method: 0 stored, 1 coded
  2     n, size of the conditions
  4     m, number of streams
  8     size of the data
  32    SHA-256 of the data
  32    SHA-256 of the parameters, as shown by `craft inspect`
  32    SHA-256 of the vocabulary
  n     conditions that the model's exact results depend on, a JSON object
  8 m   number of values and of bytes of each stream
        stored data, or all streams
  4     CRC-32 of all bytes before it
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
# Values per byte of data, at most: an escape, a length and the byte itself.
_MOST_VALUES = 3


@dataclasses.dataclass(frozen=True)
class Archive:
  """Contents of an archive.

  Attributes:
    size: size of the data in bytes.
    sha256: SHA-256 of the data.
    params_sha256: SHA-256 of the parameters, as shown by `craft inspect`.
    vocabulary_sha256: fingerprint of the vocabulary.
    conditions: what else the model's exact results depend on.
    stored: the data, if it is stored uncompressed; else None.
    lengths: number of values of each stream.
    streams: encoded streams.
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
    """Stored data or concatenated streams."""
    return b''.join(self.streams) if self.stored is None else self.stored


def pack(archive: Archive) -> bytes:
  """Serializes an archive."""
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
  """Parses a serialized archive.

  Args:
    data: the bytes.
    name: name of the file for error messages.

  Raises:
    UserError: the data is not an archive, has another format version, or is
      damaged.
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
    raise damaged(name, 'its header is invalid')
  try:
    conditions = json.loads(body[_HEAD.size : text_end])
  except (ValueError, RecursionError) as e:
    raise damaged(name, 'its header is invalid') from e
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
    raise damaged(name, 'its header is invalid')
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
  """The error for an archive that has changed since it was written."""
  return UserError(f'{name} is damaged: {why}; use another copy')
