"""Archives: the format, what is refused, what damage does."""

import dataclasses
import hashlib
import zlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.compress import archive as archive_lib
from craft_jax.inference.compress import pack
from craft_jax.inference.compress.archive import Archive
from craft_jax.inference.surprisal import score_texts
from craft_jax.runs import checkpoint

PLANES = ''.join(chr(plane << 16 | 0x1234) for plane in range(17)).encode()


def round_trip(data, trained):
  packed = pack.compress(data, trained)
  whole = archive_lib.pack(packed.archive)
  assert pack.decompress(archive_lib.unpack(whole), trained) == data
  return packed, whole


def with_check(body):
  """An archive whose checksum is right again."""
  return body + zlib.crc32(body).to_bytes(4, 'little')


@pytest.fixture(scope='module')
def small(trained, squares):
  """A coded archive of one stream."""
  packed = pack.compress(squares[:600], trained)
  assert packed.archive.stored is None
  return archive_lib.pack(packed.archive)


@pytest.mark.parametrize(
  'data',
  [b'', b'7', b'\xff', bytes(range(256)), PLANES,
   np.random.default_rng(0).bytes(3000), b'7 squared is 49; \xff\xc3' * 20],
  ids=['empty', 'one', 'invalid', 'all', 'planes', 'random', 'mixed'],
)  # fmt: skip
def test_any_bytes_come_back(trained, data):
  packed, whole = round_trip(data, trained)
  # What a model makes longer is stored uncompressed.
  assert len(whole) <= len(data) + 400
  assert packed.archive.stored == (data if len(data) != 380 else None)


def test_a_known_text_is_near_the_ideal(trained, squares):
  packed, whole = round_trip(squares, trained)
  assert packed.streams == 8 and packed.values == len(squares)
  ideal = packed.ideal_bits / 8
  assert ideal - 4 * 8 <= packed.coded_bytes <= 1.01 * ideal + 4 * 8
  assert len(whole) < packed.coded_bytes + 500 < len(squares) / 2
  one = pack.compress(squares, trained, streams=1)
  assert one.coded_bytes <= 1.01 * one.ideal_bits / 8 + 4
  assert one.coded_bytes < packed.coded_bytes


def test_within_one_percent_of_the_evaluated_bits_per_byte(trained, squares):
  (scored,) = score_texts(trained, [('squares', squares)])
  one = pack.compress(squares, trained, streams=1)
  got = 8 * one.coded_bytes / len(squares)
  assert got == pytest.approx(scored.figures['bpb'], rel=0.01)


def test_streams_are_at_most_the_bytes(trained):
  packed = pack.compress(b'123', trained, streams=99)
  assert packed.streams == 3


def test_digests_are_those_of_inspect(trained, workdir, small):
  found = archive_lib.unpack(small)
  report = checkpoint.report(workdir)
  assert found.params_sha256.hex() == report['params_sha256']
  assert found.vocabulary_sha256.hex() == trained.vocabulary.fingerprint


def test_another_model_is_refused(trained, small):
  opened = archive_lib.unpack(small)
  params = jax.tree.map(lambda leaf: leaf * 2, trained.params)
  with pytest.raises(UserError, match=r'a\.craft was made with other param'):
    pack.decompress(opened, trained._replace(params=params), 'a.craft')
  other = trained._replace(vocabulary=Vocabulary('char', '0123456789'))
  with pytest.raises(UserError, match='another vocabulary'):
    pack.decompress(opened, other)


def test_another_machine_is_refused(trained, small):
  opened = archive_lib.unpack(small)
  here = pack.conditions(trained, opened.conditions['start'], 1)
  assert opened.conditions == here
  for key in here.keys() - {'step'}:
    changed = dataclasses.replace(opened, conditions=here | {key: 'else'})
    with pytest.raises(UserError, match=f"made with {key} 'else', and here"):
      pack.decompress(changed, trained)
  later = trained._replace(meta=dataclasses.replace(trained.meta, step=7))
  assert len(pack.decompress(opened, later)) == 600


def test_other_numbers_are_seen(trained, small):
  """A model that rounds otherwise, and an archive that does not say so."""
  opened = archive_lib.unpack(small)
  params = jax.tree.map(lambda leaf: leaf * 1.001, trained.params)
  other = trained._replace(params=params)
  claimed = dataclasses.replace(
    opened, params_sha256=bytes.fromhex(checkpoint.tree_sha256(params))
  )
  with pytest.raises(
    UserError, match='does not decompress to the original data'
  ):
    pack.decompress(claimed, other)


def test_every_flipped_byte_is_seen(small):
  for at in range(len(small)):
    changed = bytearray(small)
    changed[at] ^= 1 << at % 8
    with pytest.raises(UserError):
      archive_lib.unpack(bytes(changed))


def test_every_cut_is_seen(small):
  for length in range(len(small)):
    with pytest.raises(UserError):
      archive_lib.unpack(small[:length])
  with pytest.raises(UserError, match='checksum'):
    archive_lib.unpack(small + b'\x00')


@pytest.mark.slow
def test_damage_behind_a_right_checksum_is_seen(trained, small):
  """Never another text: an error, or the text where only the step differs."""
  body = small[:-4]
  original = pack.decompress(archive_lib.unpack(small), trained)
  refused = 0
  for at in range(len(body)):
    changed = bytearray(body)
    changed[at] ^= 1 << at % 8
    try:
      opened = archive_lib.unpack(with_check(bytes(changed)))
      back = pack.decompress(opened, trained)
    except UserError:
      refused += 1
    else:
      assert back == original
  assert refused >= len(body) - 12


@pytest.mark.parametrize(
  'data, words',
  [
    (b'', r'a\.craft is not an archive'),
    (b'PK\x03\x04', 'is not an archive'),
    (archive_lib.MAGIC, r'a\.craft is damaged: its checksum'),
    (archive_lib.MAGIC + b'\x02' + bytes(400), 'is of format 2'),
    (with_check(archive_lib.MAGIC + b'\x01' + bytes(20)), 'checksum'),
    (
      with_check(archive_lib.MAGIC + b'\x01\x02' + bytes(200)),
      'its header is invalid',
    ),
    (
      with_check(archive_lib.MAGIC + b'\x01\x01' + bytes(200)),
      'its header is invalid',
    ),
  ],
)
def test_what_is_no_archive(data, words):
  with pytest.raises(UserError, match=words):
    archive_lib.unpack(data, 'a.craft')


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
  st.binary(max_size=50),
  st.none() | st.lists(st.tuples(st.integers(0, 9), st.binary()), min_size=1),
)
def test_pack_and_unpack(data, coded):
  archive = Archive(
    size=len(data) if coded is None else 10**6,
    sha256=hashlib.sha256(data).digest(),
    params_sha256=bytes(range(32)),
    vocabulary_sha256=bytes(32),
    conditions={'jax': 'x', 'cores': 2},
    stored=data if coded is None else None,
    lengths=[length for length, _ in coded or ()],
    streams=[stream for _, stream in coded or ()],
  )
  assert archive_lib.unpack(archive_lib.pack(archive)) == archive
