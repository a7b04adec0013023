"""Compressors read the bytes of a config's own split."""

import bz2
import json
import lzma
import pathlib
import random
import sys

import pytest

_FOLDER = pathlib.Path(__file__).parents[1] / 'benchmarks'
_TEXT = 'the naïve quick brown fox — jumps over a lazy dog'


@pytest.fixture
def compressors(monkeypatch):
  """benchmarks/compressors.py."""
  monkeypatch.syspath_prepend(str(_FOLDER))
  import compressors

  return compressors


@pytest.fixture
def words(tmp_path):
  """A text of 30,000 characters."""
  draw, known = random.Random(0), _TEXT.split()
  text = ' '.join(draw.choice(known) for _ in range(9000))[:30000]
  path = tmp_path / 'words.txt'
  path.write_text(text, encoding='utf-8')
  return path


@pytest.fixture
def result(compressors, words, monkeypatch, capsys):
  """The last line of the script with some flags."""

  def run(*flags):
    cache = f'--set=data.cache_dir={words.parent}'
    argv = ['compressors.py', f'--data={words}', cache, *flags]
    monkeypatch.setattr(sys, 'argv', argv)
    compressors.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])

  return run


# Cut by characters whatever the tokens are, so all read the same bytes.
@pytest.mark.parametrize(
  'flags, case',
  [
    (['--config=text'], 'text'),
    (['--config=base', '--set=data.valid_fraction=0.1'], 'base'),
    (['--config=shakespeare_cpu'], 'shakespeare-cpu'),
  ],
)
def test_sizes_are_those_of_the_split(result, words, flags, case):
  text = words.read_text(encoding='utf-8')
  train, valid = text[:27000].encode(), text[27000:].encode()
  found = result(*flags)
  assert found['case'] == case and found['split'] == 'valid'
  assert found['split_bytes'] == len(valid) > 3000
  assert found['train_bytes'] == len(train)
  for name, compress in (
    (
      'xz -9e',
      lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    ),
    ('bzip2 -9', bz2.compress),
  ):
    row = found['variants'][name]
    assert row['alone_bytes'] == len(compress(valid))
    after = len(compress(train + valid)) - len(compress(train))
    assert row['after_training_bytes'] == after
    assert row['alone'] == 8 * len(compress(valid)) / len(valid)
    assert row['after_training'] == 8 * after / len(valid)


def test_the_test_split(result, words):
  flags = ['--config=dickens', '--split=test']
  found = result(*flags)
  assert found['case'] == 'dickens-test'
  tail = words.read_text(encoding='utf-8')[28500:]
  assert found['split_bytes'] == len(tail.encode())


def test_without_ppmd(result, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyppmd', None)
  found = result('--config=text')
  assert set(found['variants']) == {'xz -9e', 'bzip2 -9'}


def test_with_ppmd(result):
  pytest.importorskip('pyppmd')
  found = result('--config=text')['variants']
  assert {'PPMd, order 6', 'PPMd, order 16'} <= set(found)
  for row in found.values():
    assert 0 < row['after_training'] < row['alone'] < 8


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--config=text', '--split=test'], 'no test split'),
    (['--config=text', "--set=text.clean=('lower',)"], 'no bits per byte'),
  ],
)
def test_what_cannot_be_asked(compressors, tmp_path, monkeypatch, flags, words):
  path = tmp_path / 'a.txt'
  path.write_text('The Fox. ' * 500)
  cache = f'--set=data.cache_dir={tmp_path}'
  argv = ['compressors.py', f'--data={path}', cache, *flags]
  monkeypatch.setattr(sys, 'argv', argv)
  with pytest.raises(SystemExit, match=words):
    compressors.main()
