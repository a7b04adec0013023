"""README's tables are what the kept results say."""

import json
import pathlib
import runpy

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_README = _ROOT / 'README.md'
_HARDWARE = {'hardware': '2 cores of X', 'jax': '0.10.2'}


@pytest.fixture
def tables(monkeypatch):
  """The names of benchmarks/tables.py."""
  folder = _ROOT / 'benchmarks'
  monkeypatch.syspath_prepend(str(folder))
  return runpy.run_path(str(folder / 'tables.py'))


@pytest.fixture
def lines(tables, tmp_path):
  """The rows of one result, without their name and hardware."""

  def of(name, **result):
    path = tmp_path / f'{name}.json'
    path.write_text(json.dumps(_HARDWARE | result))
    rows = tables['rows_of'](path)
    assert all(row[0].startswith(f'`{name}`: ') for row in rows)
    assert all(row[-1] == '2 cores of X, jax 0.10.2' for row in rows)
    return [(row[0].partition(': ')[2], *row[1:-1]) for row in rows]

  return of


def test_readme_is_fresh(tables):
  page = _README.read_text(encoding='utf-8')
  assert tables['refreshed'](page) == page, (
    'stale; refresh it: python benchmarks/tables.py --write README.md'
  )


def test_every_kept_result_has_rows(tables):
  paths = sorted(tables['RESULTS'].glob('*/*.json'))
  assert paths
  for path in paths:
    assert tables['rows_of'](path), path


def test_without_results_the_page_says_so(tables, tmp_path):
  page = _README.read_text(encoding='utf-8')
  assert 'Nothing is kept yet.' in tables['refreshed'](page, tmp_path)
  (tmp_path / 'cpu-2-x').mkdir()
  assert tables['tables'](tmp_path) == 'Nothing is kept yet.'
  with pytest.raises(ValueError, match='no <!-- results: begin'):
    tables['refreshed']('# nothing', tmp_path)


def test_a_table_per_device_quality_first(tables, tmp_path):
  timed = {'milliseconds': 2.0, 'bar': None}
  variants = {'a': timed | {'ratio': 1.0}, 'b': timed | {'ratio': 2.0}}
  smaller = {'after_training': 2.0, 'alone': 3.0}
  for device in ('gpu-1-y', 'cpu-2-x'):
    folder = tmp_path / device
    folder.mkdir()
    for name, result in (
      ('guards', {'variants': variants}),
      ('other', {'variants': variants}),
      ('compressors-a', {'variants': {'xz': smaller}, 'split': 'valid'}),
    ):
      text = json.dumps(_HARDWARE | result)
      (folder / f'{name}.json').write_text(text)
    (folder / 'ablate.jsonl').write_text('{}\n')  # not a result
  text = tables['tables'](tmp_path)
  assert text.index('### cpu-2-x') < text.index('### gpu-1-y')
  names = [line.split('`')[1] for line in text.splitlines() if '`' in line]
  assert names[:4] == ['compressors-a', 'guards', 'other', 'other']


def test_what_is_no_result_is_named(tables, tmp_path):
  path = tmp_path / 'startup.json'
  for text in ('words', '{"variants": {}}', '[]'):
    path.write_text(text)
    with pytest.raises(ValueError, match=r'startup\.json is no result'):
      tables['rows_of'](path)


def test_beside_the_variant_without(lines):
  variants = {
    'none': {'milliseconds': 10.0, 'ratio': 1.0, 'bar': None},
    'guard': {'milliseconds': 10.3, 'ratio': 1.0304, 'bar': 1.02},
  }
  want = ('guard', '10.3 ms a step', '1.03 x none', 'at most 1.02, **missed**')
  assert lines('guards', variants=variants) == [want]
  variants = {
    'training': {'rate': 1e5, 'ratio': 1.0, 'bar': None},
    'device feed': {'rate': 3.2e7, 'ratio': 320.0, 'bar': 20},
  }
  assert lines('data', variants=variants, bars='ratio at least') == [
    ('device feed', '32,000,000 symbols/s', '320 x training', 'at least 20')
  ]
  variants = {
    f'{config}, {count}': {'rate': 3.0 * count, 'ratio': count, 'bar': None}
    for config in ('a', 'b')
    for count in (1, 2)
  }
  assert lines('scaling', variants=variants) == [
    ('a, 2', '6.00 steps/s', '2 x a, 1', ''),
    ('b, 2', '6.00 steps/s', '2 x b, 1', ''),
  ]


def test_training_beside_the_fastest_peer(lines):
  ours = {
    'chars_per_second': 23471.2,
    'speedup_float32': 3.0,
    'fastest_float32': 'torch float32',
    'speedup_any': 1.5,
    'fastest_any': 'torch bfloat16',
  }
  variants = {
    'craft': ours | {'bar': 2.5},
    'craft float32': ours | {'bar': None},
    'torch bfloat16': {'chars_per_second': 15000.0},
  }
  assert lines(
    'train_step-gpu-gpt2', variants=variants, bars='speedup_float32 at least'
  ) == [
    (
      'craft',
      '23,471 characters/s',
      '1.5 x torch bfloat16',
      '3 x torch float32: at least 2.5',
    ),
    ('craft float32', '23,471 characters/s', '1.5 x torch bfloat16', ''),
  ]
  alone = {'craft': {'chars_per_second': 5.0, 'bar': 2.5}}
  assert lines(
    'train_step-cpu', variants=alone, bars='speedup_float32 at least'
  ) == [('craft', '5 characters/s', '', '')]


def test_decoding_beside_the_fastest_peer(lines):
  def row(speedup, bar=None):
    return {'chars_per_second': 100.0, 'speedup': speedup, 'bar': bar}

  variants = {
    'craft, batch 1': row(1.0),
    'torch, no cache, batch 1': row(12.0, 8.0),
    'transformers, batch 1': row(3.0, 3.5),
    'craft, batch 16': row(1.0),
  }
  assert lines('decode-gpu', variants=variants, bars='speedup at least') == [
    (
      'craft, batch 1',
      '100 characters/s',
      '3 x transformers',
      '12 x torch, no cache: at least 8; '
      '3 x transformers: at least 3.5, **missed**',
    ),
    ('craft, batch 16', '100 characters/s', '', ''),
  ]


def test_seconds(lines):
  variants = {'cold': {'seconds': 11.04, 'bar': 12}, 'warm': {'seconds': 3.0}}
  assert lines('startup', variants=variants, bars='seconds at most') == [
    ('cold, to the first step', '11.0 s', '', 'at most 12'),
    ('warm, to the first step', '3.0 s', '', ''),
  ]
  variants = {
    'loss 1.88': {
      'craft': 41.3,
      'torch': 118.5,
      'torch_reached': False,
      'speedup': 2.869,
      'bar': 5.0,
    },
    'loss 1.6': {
      'craft': None,
      'torch': 118.5,
      'torch_reached': False,
      'speedup': None,
      'bar': None,
    },
  }
  ends = {'craft': [1.58, 1.6], 'torch': [1.9, 1.92]}
  evaluations = {
    name: [[{'val_loss': 4.0}, {'val_loss': loss}] for loss in losses]
    for name, losses in ends.items()
  }
  found = lines(
    'time_to_loss',
    variants=variants,
    evaluations=evaluations,
    bars='speedup at least',
  )
  peer = "nanoGPT's recipe in PyTorch"
  assert found[0][1:3] == ('1.5900 nats', f'1.9100 {peer}')
  assert found[1] == (
    'time to loss 1.88',
    '41.3 s',
    f'more than 2.869 x {peer}',
    'at least 5, **missed**',
  )
  assert found[2][:2] == ('time to loss 1.6', 'not reached')


def test_quality(lines):
  variants = {
    'baseline': {'val_loss': 1.9, 'seeds': 3},
    'recipe': {'val_loss': 1.585, 'seeds': 3},
    'recipe - Muon': {'val_loss': 1.67, 'seeds': 3},
  }
  assert lines('ablate', variants=variants) == [
    (
      'validation loss of tinyshakespeare, 3 seeds',
      '1.5850 nats',
      '1.9000 the [baseline](docs/recipe.md)',
      '',
    )
  ]
  assert lines('ablate', variants={'baseline': variants['baseline']}) == []
  row = {'after_training': 2.0288, 'alone': 2.4}
  assert lines('compressors-text', variants={'xz': row}, split='valid') == [
    (
      'xz, valid split',
      '2.0288 bits per byte after training, 2.4000 alone',
      '',
      '',
    )
  ]


def test_a_script_without_a_function(lines):
  variants = {'a': {'speed': 2.5, 'bar': 2.0}, 'b': {'bytes': 1}}
  assert lines('new', variants=variants, bars='speed at least') == [
    ('a', 'speed 2.5', '', 'at least 2')
  ]


def test_constraints_show_the_slowest(lines):
  rows = {
    name: {'milliseconds': ms, 'bar': 1000.0} | more
    for name, ms, more in (
      ('a|b', 20.0, {}), ('c', 1.0, {}), ('d', 1200.0, {'refused': 'no'}),
    )
  }  # fmt: skip
  assert lines('constraints', variants=rows, bars='milliseconds at most') == [
    (r'slowest of 2 compiled, a\|b', '20 ms', '', 'at most 1000'),
    ('slowest of 1 refused, d', '1200 ms', '', 'at most 1000, **missed**'),
  ]


def test_quantized_has_bytes_bits_and_both_speeds(lines):
  size = {'weight_bytes': 2e7, 'cache_bytes': 4.72e6}
  assert lines(
    'quantized',
    variants={
      'auto': size | {'speedup_1': 1.0, 'speedup_16': 1.0},
      'int8 cache': size
      | {'speedup_1': 0.98765, 'speedup_16': 1.5, 'bits_per_byte': 2.16271},
    },
  ) == [
    ('auto', '20.00 MB, and 4.72 MB a text', '', ''),
    (
      'int8 cache', '20.00 MB, and 4.72 MB a text; 2.1627 bits per byte',
      '0.988 x auto, 1.5 x with sixteen texts', '',
    ),
  ]  # fmt: skip
