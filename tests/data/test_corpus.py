"""From settings to arrays: tokens, counts, vocabulary, cache."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from craft_jax.config.settings import Config, Data, Text
from craft_jax.data import cache
from craft_jax.data.prepare import open_corpus
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.runtime import host_memory


def config(tmp_path, text=None, **data):
  settings = {'source': 'path', 'cache_dir': str(tmp_path / 'cache')} | data
  return Config(data=Data(**settings), text=text or Text())


def text_file(tmp_path, text, name='my.txt'):
  data = text if isinstance(text, bytes) else text.encode('utf-8')
  (tmp_path / name).write_bytes(data)
  return str(tmp_path / name)


def facts(corpus):
  """What must not depend on whether the arrays came from the cache."""
  rest = dataclasses.asdict(corpus)
  rest.pop('reused')
  tokens = [rest[name].pop('tokens').tolist() for name in ('train', 'valid')]
  return rest, tokens


def test_bytes_with_multibyte_text(tmp_path):
  text = 'aé€😀' * 25  # 4 characters in 10 bytes
  corpus = open_corpus(config(tmp_path, path=text_file(tmp_path, text)))
  assert corpus.vocabulary == Vocabulary.byte()
  assert (corpus.train.num_chars, corpus.train.num_bytes) == (90, 223)
  assert (corpus.valid.num_chars, corpus.valid.num_bytes) == (10, 27)
  assert corpus.test is None and len(corpus.splits) == 2
  assert corpus.train.tokens.dtype == np.uint16
  joined = np.concatenate([corpus.train.tokens, corpus.valid.tokens])
  assert corpus.vocabulary.decode(joined) == text
  assert corpus.vocabulary.decode(corpus.valid.tokens) == text[90:]
  assert corpus.withheld == '' and corpus.documents == 1
  assert corpus.report == [] and corpus.notes == ()
  with pytest.raises(ValueError, match='read-only'):
    corpus.train.tokens[0] = 1


def test_characters_and_unknown_ones(tmp_path):
  path = text_file(tmp_path, 'ab€' * 30 + 'ab€c' * 2 + 'ba')
  char = Text(vocabulary='char')
  with pytest.raises(UserError, match=r'valid split, my\.txt: .*U\+0063'):
    open_corpus(config(tmp_path, char, path=path))
  char = Text(vocabulary='char', unknown='replace')
  corpus = open_corpus(config(tmp_path, char, path=path))
  assert corpus.vocabulary.chars == 'ab€'
  assert corpus.train.tokens.dtype == np.uint8
  assert corpus.valid.num_chars == 10 and corpus.train.num_chars == 90
  assert corpus.valid.num_bytes == 10 + 2 * 2
  assert corpus.withheld == '2 characters became UNK'
  capped = Text(vocabulary='char', unknown='replace', max_chars=2)
  corpus = open_corpus(config(tmp_path, capped, path=path))
  assert corpus.vocabulary.chars == 'ab'
  assert '34 characters became UNK' in corpus.withheld


def test_a_given_vocabulary_is_used(tmp_path):
  path = text_file(tmp_path, 'abc' * 10)
  given = Vocabulary.from_text('zcba')
  cfg = config(tmp_path, Text(vocabulary='byte'), path=path)
  corpus = open_corpus(cfg, given)
  assert corpus.vocabulary == given
  assert given.decode(corpus.train.tokens) == 'abc' * 9
  plain = open_corpus(cfg)
  assert plain.vocabulary == Vocabulary.byte()
  assert open_corpus(cfg, Vocabulary.byte()).folder == plain.folder
  with pytest.raises(UserError, match=r'U\+0063'):
    open_corpus(cfg, Vocabulary.from_text('ab'))


@pytest.mark.parametrize('kind', ['byte', 'char'])
def test_the_vocabulary_of_a_checkpoint_gives_the_same_corpus(tmp_path, kind):
  path = text_file(tmp_path, 'abc' * 10)
  cfg = config(tmp_path, Text(vocabulary=kind), path=path)
  built = open_corpus(cfg)
  again = open_corpus(cfg, Vocabulary.from_json(built.vocabulary.to_json()))
  assert again.fingerprint == built.fingerprint


@pytest.mark.parametrize('kind', ['byte', 'char'])
def test_documents_are_separated(tmp_path, kind):
  folder = tmp_path / 'texts'
  folder.mkdir()
  for name, text in {'b': 'two<bos>', 'a': 'one', 'c': 'three'}.items():
    (folder / f'{name}.txt').write_text(text)
  cfg = config(
    tmp_path,
    Text(vocabulary=kind),
    path=str(folder),
    valid_path=text_file(tmp_path, 'on'),
    split='given',
  )
  corpus = open_corpus(cfg)
  v = corpus.vocabulary
  shown = v.show(corpus.train.tokens)
  assert shown == 'one<bos>two<bos><bos>three'
  assert np.count_nonzero(corpus.train.tokens == v.bos) == 2
  assert corpus.train.tokens[0] != v.bos
  assert corpus.train.num_chars == corpus.train.num_bytes == 16
  assert len(corpus.train.tokens) == 18
  assert (corpus.train.documents, corpus.documents) == (3, 4)


def test_split_by_file_and_test_part(tmp_path):
  folder = tmp_path / 'texts'
  folder.mkdir()
  for i in range(20):
    (folder / f'{i}.txt').write_text(f'text {i}')
  cfg = config(
    tmp_path,
    path=str(folder),
    split='file',
    valid_fraction=0.2,
    test_fraction=0.2,
  )
  corpus = open_corpus(cfg)
  pieces = []
  for split in corpus.splits:
    shown = corpus.vocabulary.show(split.tokens).split('<bos>')
    assert len(shown) == split.documents > 0
    pieces += shown
  assert sorted(pieces) == sorted(f'text {i}' for i in range(20))


def test_cleaning_report_and_withheld_bytes(tmp_path):
  lower = Text(clean=('newlines', 'lower'))
  path = text_file(tmp_path, 'one two\n' * 10)
  corpus = open_corpus(config(tmp_path, lower, path=path))
  assert corpus.withheld == ''  # nothing really changed
  assert [step['name'] for step in corpus.report] == ['newlines', 'lower']
  path = text_file(tmp_path, 'One two\n' * 10)
  corpus = open_corpus(config(tmp_path, lower, path=path))
  assert corpus.withheld == 'cleaning was lossy (lower changed 10)'
  assert corpus.report[1]['changed'] == 10
  decoded = corpus.vocabulary.decode(corpus.train.tokens)
  assert decoded == ('one two\n' * 10)[:72]
  with pytest.raises(UserError, match="did you mean 'lower'"):
    open_corpus(config(tmp_path, Text(clean=('lowr',)), path=path))


def test_invalid_utf8(tmp_path):
  path = text_file(tmp_path, b'good text ' * 5 + b'\xff\xfe' + b'more ' * 10)
  corpus = open_corpus(config(tmp_path, path=path))
  assert corpus.train.num_bytes + corpus.valid.num_bytes == 102
  char = Text(vocabulary='char', unknown='replace')
  with pytest.raises(UserError, match=r'my\.txt is not UTF-8: .* offset 50'):
    open_corpus(config(tmp_path, char, path=path))
  drop = dataclasses.replace(char, clean=('utf8-drop',))
  corpus = open_corpus(config(tmp_path, drop, path=path))
  assert corpus.train.num_chars + corpus.valid.num_chars == 100
  assert 'utf8-drop' in corpus.withheld


def test_nothing_left_after_cleaning(tmp_path):
  path = text_file(tmp_path, '\x01\x02\x03')
  with pytest.raises(UserError, match='nothing is left'):
    open_corpus(config(tmp_path, Text(clean=('drop-controls',)), path=path))


def test_the_cache_is_reused_until_something_changes(tmp_path):
  path = text_file(tmp_path, 'hello world ' * 20)
  cfg = config(tmp_path, path=path)
  first, second = open_corpus(cfg), open_corpus(cfg)
  assert (first.reused, second.reused) == (False, True)
  assert facts(first) == facts(second)
  assert sorted(p.name for p in first.folder.iterdir()) == [
    'corpus.json',
    'train.npy',
    'valid.npy',
  ]
  text_file(tmp_path, 'hello w0rld ' * 20)  # same size
  changed = open_corpus(cfg)
  assert not changed.reused
  assert changed.fingerprint != first.fingerprint
  other = config(tmp_path, path=path, valid_fraction=0.2)
  assert not open_corpus(other).reused
  assert open_corpus(other).fingerprint != changed.fingerprint
  # What does not matter to the arrays finds them again.
  assert open_corpus(config(tmp_path, path=path, order='windows')).reused
  left = {p.name for p in (tmp_path / 'cache' / 'corpora').iterdir()}
  assert len(left) == 3 and not any(name.startswith('.') for name in left)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-3])


def flip(path):
  data = bytearray(path.read_bytes())
  data[-2] ^= 1
  path.write_bytes(data)


def alter(path):
  stored = json.loads(path.read_text())
  stored['facts']['counts']['valid']['num_bytes'] += 1
  path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
  ('name', 'damage'),
  [
    ('train.npy', truncate),
    ('valid.npy', flip),
    ('train.npy', lambda path: path.unlink()),
    ('valid.npy', lambda path: path.write_bytes(b'')),
    ('corpus.json', truncate),
    ('corpus.json', alter),
    ('corpus.json', lambda path: path.write_text('[]')),
    ('corpus.json', lambda path: path.write_bytes(b'\xff\xfe')),
    ('corpus.json', lambda path: path.unlink()),
  ],
)
def test_a_damaged_cache_is_rebuilt(tmp_path, caplog, name, damage):
  cfg = config(tmp_path, path=text_file(tmp_path, 'hello world ' * 20))
  first = facts(open_corpus(cfg))
  damage(open_corpus(cfg).folder / name)
  with caplog.at_level(logging.WARNING):
    again = open_corpus(cfg)
  assert caplog.text.count('is damaged') == 1
  assert not again.reused and facts(again) == first
  assert open_corpus(cfg).reused
  assert len(list(again.folder.parent.iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path):
  path = text_file(tmp_path, 'hello world ' * 20)
  (tmp_path / 'cache').write_text('a file')
  with pytest.raises(UserError) as error:
    open_corpus(config(tmp_path, path=path))
  assert '--config.data.cache_dir=DIR' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  def full(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(cache, '_sync', full)
  path = text_file(tmp_path, 'hello world ' * 20)
  with pytest.raises(UserError, match='No space left on device'):
    open_corpus(config(tmp_path, path=path))
  assert list((tmp_path / 'cache' / 'corpora').iterdir()) == []


def test_two_writers_of_one_entry(tmp_path):
  arrays = {'train': np.arange(5, dtype=np.uint8)}
  cache.store(tmp_path / 'entry', {'a': 1}, arrays)
  first = (tmp_path / 'entry' / 'train.npy').stat().st_ino
  cache.store(tmp_path / 'entry', {'a': 1}, arrays)
  # The entry that another process may be reading stays.
  assert (tmp_path / 'entry' / 'train.npy').stat().st_ino == first
  stored, loaded = cache.load(tmp_path / 'entry')
  assert stored['a'] == 1
  assert np.array_equal(loaded['train'], arrays['train'])
  assert [p.name for p in tmp_path.iterdir()] == ['entry']


def test_missing_text_is_one_line(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    open_corpus(config(tmp_path, path=str(tmp_path / 'none.txt')))


def test_text_that_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
  """Before it is read, and before it is prepared."""
  path = tmp_path / 'large.txt'
  with open(path, 'wb') as file:
    file.write(b'some text\n')
    file.truncate(1 << 40)  # a hole: it takes no room on the disk
  with pytest.raises(UserError, match=r'at least 1,099\.51 GB of memory') as e:
    open_corpus(config(tmp_path, path=str(path)))
  assert '\n' not in str(e.value)
  path = text_file(tmp_path, 'some text to read\n' * 100)
  small = host_memory.Room(4000.0, 'the control group')
  monkeypatch.setattr(host_memory, 'host_room', lambda: small)
  with pytest.raises(UserError, match='the control group leaves'):
    open_corpus(config(tmp_path, path=path))
  assert not list(tmp_path.rglob('*.npy'))
  monkeypatch.undo()
  open_corpus(config(tmp_path, path=path))
  monkeypatch.setattr(host_memory, 'host_room', lambda: small)
  assert open_corpus(config(tmp_path, path=path)).reused
