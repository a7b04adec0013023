"""`craft compress` and `craft decompress`, files and mistakes."""

import json
import lzma

import pytest

from craft_jax.inference.compress import archive, pack
from craft_jax.main import main
from craft_jax.runtime import files


@pytest.fixture
def craft(capsys, monkeypatch, tmp_path, workdir):
  """`craft(*argv) -> (code, stdout, stderr)` in an empty folder."""
  monkeypatch.chdir(tmp_path)

  def run(command, *argv):
    code = main([command, f'--workdir={workdir}', '--quiet', *argv])
    out, err = capsys.readouterr()
    return code, out, err

  return run


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_there_and_back(craft, tmp_path, squares):
  path = tmp_path / 'a.txt'
  path.write_bytes(squares)
  code, out, err = craft('compress', 'a.txt', '--json')
  assert (code, err) == (0, '')
  figures = json.loads(out.splitlines()[-1])
  archive = tmp_path / 'a.txt.craft'
  assert figures['archive_bytes'] == archive.stat().st_size
  assert figures['bits_per_byte'] == 8 * archive.stat().st_size / len(squares)
  xz = len(lzma.compress(squares, preset=9 | lzma.PRESET_EXTREME))
  assert figures['xz_bytes'] == xz and figures['bytes'] == len(squares)
  assert figures['coded_bytes'] <= 1.01 * figures['ideal_bytes'] + 32
  assert not figures['stored'] and figures['bytes_per_second'] > 0
  assert 'a.txt.craft: ' in out and 'xz -9e' in out and 'bits per byte' in out

  path.unlink()
  code, out, err = craft('decompress', 'a.txt.craft', '--json')
  assert (code, err) == (0, '') and path.read_bytes() == squares
  assert json.loads(out.splitlines()[-1])['bytes'] == len(squares)
  assert names(tmp_path) == ['a.txt', 'a.txt.craft']


@pytest.mark.parametrize('data', [b'', b'\xff'])
def test_small_files(craft, tmp_path, data):
  (tmp_path / 'a').write_bytes(data)
  assert craft('compress', 'a', '--output=b')[0] == 0
  assert craft('decompress', 'b', '--output=c')[0] == 0
  assert (tmp_path / 'c').read_bytes() == data


def test_nothing_is_overwritten_without_force(craft, tmp_path):
  (tmp_path / 'a').write_bytes(b'1')
  (tmp_path / 'a.craft').write_bytes(b'mine')
  code, _, err = craft('compress', 'a')
  assert code == 2 and 'a.craft exists' in err and '--force' in err
  assert (tmp_path / 'a.craft').read_bytes() == b'mine'
  assert craft('compress', 'a', '--force')[0] == 0
  code, _, err = craft('decompress', 'a.craft')
  assert code == 2 and 'a exists' in err
  assert craft('decompress', 'a.craft', '--force')[0] == 0
  assert (tmp_path / 'a').read_bytes() == b'1'


@pytest.fixture(scope='module')
def whole(trained):
  """An archive of a few bytes."""
  return archive.pack(pack.compress(b'7 squared is 49', trained).archive)


@pytest.mark.parametrize(
  'argv, words',
  [
    (['compress', 'none'], 'none: No such file'),
    (['compress', 'a', '--streams=0'], '--streams=0 must be from 1'),
    (['compress', 'a', '--output=.'], '--output=. is a folder'),
    (['compress', 'a', '--output=no/a'], 'there is no folder no'),
    (['compress', 'a', '--step=7'], 'has no step 7'),
    (['decompress', 'a'], 'a does not end in .craft; give --output'),
    (['decompress', 'a', '--output=b'], 'a is not an archive'),
    (['decompress', 'cut.craft'], 'cut.craft is damaged'),
    (['decompress', 'bad.craft'], 'bad.craft is damaged'),
    (['decompress', 'none.craft'], 'none.craft: No such file'),
  ],
)
def test_mistakes_write_nothing(craft, tmp_path, whole, argv, words):
  (tmp_path / 'a').write_bytes(b'7 squared is 49')
  (tmp_path / 'cut.craft').write_bytes(whole[:-20])
  (tmp_path / 'bad.craft').write_bytes(whole[:-9] + b'x' + whole[-8:])
  before = names(tmp_path)
  code, out, err = craft(*argv)
  assert code == 2 and words in err and err.count('\n') == 1 and not out
  assert names(tmp_path) == before


def test_a_full_disk_leaves_nothing(craft, tmp_path, monkeypatch):
  (tmp_path / 'a').write_bytes(b'7 squared is 49')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', full)
  code, _, err = craft('compress', 'a')
  assert code == 1 and 'no space left' in err
  assert names(tmp_path) == ['a']
