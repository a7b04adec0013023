"""From files of pairs to splits: groups, leakage, rows left out, mistakes."""

import json

import pytest

from craft_jax.config.load import load_config
from craft_jax.data import pairs
from craft_jax.data.prepare import open_corpus
from craft_jax.errors import UserError
from craft_jax.main import main


@pytest.fixture
def opened(tmp_path):
  """`opened(*overrides) -> Corpus` of `my.tsv` in an empty cache."""

  def make(*overrides, file='my.tsv', vocabulary=None):
    cfg = load_config(
      'pairs',
      [
        f'data.path={tmp_path / file}',
        f'data.cache_dir={tmp_path / "cache"}',
        'model.context=32',
        *overrides,
      ],
    )
    return open_corpus(cfg, vocabulary)

  return make


def write(tmp_path, rows, name='my.tsv', header='prompt\tcompletion'):
  lines = [header, *('\t'.join(row) for row in rows)]
  (tmp_path / name).write_text('\n'.join(lines) + '\n', encoding='utf-8')


ROWS = [(f'p{i % 80}', f'c{i}') for i in range(200)]


def rows_in(split, vocabulary):
  return {
    (p, c) for p, some in pairs.rows_of(split.tokens, vocabulary) for c in some
  }


def test_splits_by_prompt(tmp_path, opened):
  write(tmp_path, ROWS)
  corpus = opened('data.valid_fraction=0.2', 'data.test_fraction=0.1')
  found = [rows_in(split, corpus.vocabulary) for split in corpus.splits]
  assert set.union(*found) == set(ROWS)
  assert sum(map(len, found)) == corpus.documents == 200
  prompts = [{p for p, _ in some} for some in found]
  assert sum(map(len, prompts)) == 80  # each in one split
  assert 8 <= len(prompts[1]) <= 24 and len(prompts[2]) >= 2
  # More rows move none.
  write(tmp_path, [*ROWS, ('new', 'x')])
  more = opened('data.valid_fraction=0.2', 'data.test_fraction=0.1')
  again = [rows_in(split, more.vocabulary) for split in more.splits]
  assert all(a <= b for a, b in zip(found, again, strict=True))
  assert not corpus.warnings and not corpus.notes


def test_counts_are_of_completions(tmp_path, opened):
  write(tmp_path, [(f'p{i}', 'ß€') for i in range(300)])
  for kind, tokens in (('byte', 6), ('char', 3)):
    corpus = opened(f'text.vocabulary={kind}')
    for split in corpus.splits:
      assert split.num_chars == 2 * split.documents
      assert split.num_bytes == 5 * split.documents
      assert split.num_learnt == tokens * split.documents
    assert corpus.withheld == ''


def test_splits_by_group(tmp_path, opened):
  rows = [(f'p{i}', f'c{i}', f'g{i // 10}') for i in range(100)]
  write(tmp_path, rows, header='prompt\tcompletion\tlemma')
  corpus = opened('data.group_field=lemma', 'data.valid_fraction=0.3')
  group = {row[:2]: row[2] for row in rows}
  train, valid = (
    {group[row] for row in rows_in(split, corpus.vocabulary)}
    for split in corpus.splits
  )
  assert train and valid and not train & valid
  assert corpus.valid.documents % 10 == 0


def test_leakage_is_a_warning_with_the_count(tmp_path, opened):
  write(tmp_path, ROWS)
  write(tmp_path, [('p1', 'other'), ('p2', 'c2'), ('new', 'c')], 'valid.tsv')
  corpus = opened('data.split=given', f'data.valid_path={tmp_path}/valid.tsv')
  assert corpus.pairs['leakage']['valid'] == {'rows': 2, 'pairs': 1, 'of': 3}
  (warning,) = corpus.warnings
  assert warning.startswith('2 of 3 rows of the valid split have a prompt')
  assert '1 with the same completion' in warning
  # From the cache too.
  again = opened('data.split=given', f'data.valid_path={tmp_path}/valid.tsv')
  assert again.reused and again.warnings == corpus.warnings


def test_rows_left_out_are_counted_and_named(tmp_path, opened):
  rows = [*ROWS[:20], ('', 'x'), ('x', ''), ('long', 'x' * 26), ('one',)]
  rows += [('y' * i, 'z' * 30) for i in range(1, 9)]
  write(tmp_path, rows)
  corpus = opened()
  left_out = {r['reason']: r for r in corpus.pairs['left_out']}
  assert {reason: row['rows'] for reason, row in left_out.items()} == {
    'empty prompt': 1,
    'empty completion': 1,
    'not as many fields as columns': 1,
    'longer than model.context=32': 9,
  }
  long = left_out['longer than model.context=32']['places']
  assert long == [f'my.tsv:{n}' for n in (24, 26, 27, 28, 29)]
  assert corpus.notes[0] == 'rows left out: 1 empty prompt (my.tsv:22)'
  assert corpus.notes[-1].endswith('my.tsv:28, my.tsv:29, ...)')
  assert corpus.pairs['longest'] == {'tokens': 41, 'place': 'my.tsv:33'}
  assert corpus.documents == 20
  # A row that fills the context to the last token is not too long.
  assert opened('model.context=33').documents == 21


def test_the_context_and_the_fields_are_part_of_the_cache_key(tmp_path, opened):
  rows = [(f'a{i}', f'b{i}', f'c{i}') for i in range(20)]
  write(tmp_path, rows, header='prompt\tcompletion\tother')
  folders = {
    opened().folder,
    opened('model.context=40').folder,
    opened('data.completion_field=other').folder,
    opened('data.group_field=other').folder,
  }
  assert len(folders) == 4
  assert opened().reused and opened('train.steps=7').reused
  for context in (32, 40):
    split = opened(f'model.context={context}').train
    assert len(split.tokens) % context == 1


def test_characters(tmp_path, opened):
  write(tmp_path, ROWS)
  write(tmp_path, [('p1', 'c1'), ('p2', 'cß')], 'valid.tsv')
  given = (
    'text.vocabulary=char', 'data.split=given',
    f'data.valid_path={tmp_path}/valid.tsv',
  )  # fmt: skip
  with pytest.raises(UserError, match=r'valid split, valid\.tsv:3: .*U\+00DF'):
    opened(*given)
  corpus = opened(*given, 'text.unknown=replace')
  assert sorted(corpus.vocabulary.chars) == sorted('pc0123456789')
  assert corpus.withheld == '1 characters became UNK'


def test_a_folder_of_files(tmp_path, opened):
  (tmp_path / 'data').mkdir()
  write(tmp_path, ROWS[:100], 'data/a.tsv')
  lines = [json.dumps({'prompt': p, 'completion': c}) for p, c in ROWS[100:]]
  (tmp_path / 'data' / 'b.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'data' / 'README.md').write_text('What these are.')
  corpus = opened(file='data')
  assert corpus.documents == 200
  assert corpus.notes == (
    '1 files are not of pairs and were not read: README.md',
  )
  # Whole files by their names, with prompts in both.
  by_file = opened('data.split=file', file='data')
  assert sorted(s.documents for s in by_file.splits) == [100, 100]
  assert 'rows of the valid split have a prompt' in by_file.warnings[0]


@pytest.mark.parametrize(
  'text, flags, message',
  [
    ('prompt\tcompletion\n', [], r'\(all\) holds no pair .*; give rows'),
    ('prompt\tcompletion\n\tx\n', [], r'holds no pair .*: 1 empty prompt \(my'),
    ('prompt\tcompletion\na\tb\na\tc\n', [], 'leave a split empty'),
    ('q\ta\nb\tc\n', [], r"my\.tsv has no column 'prompt'; it has 'q', 'a'"),
    ('prompt\tcompletion\na\t"b\n', [], r'my\.tsv:2: a quote'),
    ('prompt\tcompletion\na\tb\n', ['data.order=crops'], 'data.order=windows'),
    ('', [], 'is empty'),
    ('x', ['model.documents=false'], 'model.documents=true'),
    ('x', ['eval.stride=4'], 'eval.stride=0'),
    ('x', ['data.noise_rate=0.1'], 'does not augment'),
    ('x', ["text.clean=('nfc',)"], 'does not clean'),
    ('x', ['data.source=shakespeare'], 'data.source=path'),
    ('x', ['data.prompt_field=completion'], 'names of two fields'),
  ],
)
def test_mistakes_are_one_line(tmp_path, opened, text, flags, message):
  (tmp_path / 'my.tsv').write_text(text)
  with pytest.raises(UserError, match=message) as caught:
    opened(*flags)
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.glob('cache/corpora/*'))


def test_other_mistakes(tmp_path, opened):
  write(tmp_path, ROWS)
  with pytest.raises(UserError, match=r'needs data\.format=pairs'):
    load_config('text', ['data.path=x', 'data.group_field=y'])
  (tmp_path / 'my.txt').write_text('text')
  with pytest.raises(UserError, match=r'reads \.tsv, \.csv, \.jsonl, \.json;'):
    opened(file='my.txt')
  with pytest.raises(UserError, match=r'\(valid\) holds no pair'):
    write(tmp_path, [('x' * 40, 'y')], 'valid.tsv')
    opened('data.split=given', f'data.valid_path={tmp_path}/valid.tsv')


def test_no_run_is_left_of_a_mistake(tmp_path, capsys):
  write(tmp_path, [('a', 'b')], header='word\tphones')
  argv = [f'--config.data.path={tmp_path}/my.tsv', f'--workdir={tmp_path}/run']
  assert main(['train', '--config=pairs', *argv]) == 2
  assert "craft: my.tsv has no column 'prompt'" in capsys.readouterr().err
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_statistics(tmp_path, capsys):
  write(tmp_path, [*ROWS, ROWS[0], ('', 'x'), ('long', 'x' * 40)])
  argv = ['data', 'stats', '--config=pairs', '--config.model.context=32']
  argv += [f'--config.data.path={tmp_path}/my.tsv', '--json']
  assert main([*argv, f'--config.data.cache_dir={tmp_path}/cache']) == 0
  *lines, last = capsys.readouterr().out.splitlines()
  facts = json.loads(last)['pairs']
  train, valid = facts['splits']['train'], facts['splits']['valid']
  assert train['rows'] + valid['rows'] == 201
  assert train['prompts'] + valid['prompts'] == 80
  assert train['repeated'] + valid['repeated'] == 1
  assert train['prompt_lengths'] == {'50': 3, '90': 3, '99': 3, '100': 3}
  assert train['completion_lengths']['100'] == 4
  assert 0.8 < train['fill'] <= 1 and 0.3 < train['learnt'] < 0.6
  text = '\n'.join(lines)
  assert 'longest row  47 tokens (my.tsv:204), model.context=32' in text
  assert 'leakage      0 of' in text
  assert 'note: rows left out: 1 empty prompt (my.tsv:203)' in text
  assert 'bits per byte  can be given' in text


def test_packing_is_the_same_everywhere(tmp_path, opened):
  """Arrays that another machine or version prepares are the same."""
  write(tmp_path, ROWS)
  assert opened().fingerprint.startswith('e90098589641c291')
