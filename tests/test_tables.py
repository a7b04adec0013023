"""Kept results become sentences: benchmarks/tables.py.

That the page says what the results do is checked by `tables.py --check`, which
launch/test.sh runs.
"""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_HARDWARE = {'hardware': '2 cores of X', 'jax': '0.10.2'}
_TIMED = {'milliseconds': 10.0, 'ratio': 1.0, 'bar': None}


@pytest.fixture
def tables(monkeypatch):
  """The names of benchmarks/tables.py."""
  folder = _ROOT / 'benchmarks'
  monkeypatch.syspath_prepend(str(folder))
  return runpy.run_path(str(folder / 'tables.py'))


@pytest.fixture
def told(tables, tmp_path):
  """The sentences of one result."""

  def of(name, variants, **result):
    path = tmp_path / f'{name}.json'
    path.write_text(json.dumps(_HARDWARE | {'variants': variants} | result))
    rows = tables['rows_of'](path)
    assert all(first == f'`{name}`' for first, _ in rows)
    return [sentence for _, sentence in rows]

  return of


def test_every_kept_figure_has_its_sentence(tables):
  paths = sorted(tables['RESULTS'].glob('*/*.json'))
  assert paths
  for path in paths:
    for _, sentence in tables['rows_of'](path):
      assert '{' not in sentence.partition('`')[0], path
      assert 'None' not in sentence, path


def test_a_page_is_written_and_checked(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text('# A\n<!-- results: begin -->\n<!-- results: end -->\nend\n')

  def run(flag):
    command = [sys.executable, 'benchmarks/tables.py', flag, str(page)]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)

  stale = run('--check')
  assert stale.returncode == 1 and 'page.md is stale' in stale.stderr
  assert run('--write').returncode == 0
  assert run('--check').returncode == 0
  text = page.read_text()
  assert text.startswith('# A\n') and text.endswith('end\n')
  assert '| `engine` | requests of mixed lengths' in text


def test_without_results_the_page_says_so(tables, tmp_path):
  (tmp_path / 'cpu-2-x').mkdir()
  assert tables['tables'](tmp_path) == 'Nothing is kept yet.'
  with pytest.raises(ValueError, match='no <!-- results: begin'):
    tables['pages'].refreshed('# nothing', {'results': ''})


def test_a_table_per_machine_quality_first(tables, tmp_path):
  variants = {'a': _TIMED, 'b': _TIMED | {'ratio': 2.0}}
  smaller = {'after_training': 2.0, 'alone': 3.0}
  for device in ('gpu-1-y', 'cpu-2-x'):
    folder = tmp_path / device
    folder.mkdir()
    for name, result in (
      ('guards', {'variants': variants}),
      ('other', {'variants': variants}),
      ('compressors-a', {'variants': {'xz': smaller}, 'split': 'valid'}),
      ('startup', {'variants': {'cold': {'seconds': 3}}, 'jax': '0.11'}),
    ):
      text = json.dumps(_HARDWARE | result)
      (folder / f'{name}.json').write_text(text)
    (folder / 'ablate.jsonl').write_text('{}\n')  # not a result
  text = tables['tables'](tmp_path)
  heads = [line for line in text.splitlines() if line.startswith('#')]
  assert heads == [
    f'### 2 cores of X, jax {version} (`{device}`)'
    for device in ('cpu-2-x', 'gpu-1-y')
    for version in ('0.10.2', '0.11')
  ]
  rows = [line for line in text.splitlines() if line.startswith('| `')]
  names = [row.split('`')[1] for row in rows[:4]]
  assert names == ['compressors-a', 'guards', 'other', 'startup']


def test_what_is_no_result_is_named(tables, tmp_path):
  path = tmp_path / 'startup.json'
  for text in ('words', '{"variants": {}}', '{"variants": {"a": 1}}', '[]'):
    path.write_text(text)
    with pytest.raises(ValueError, match=r'startup\.json is no result'):
      tables['rows_of'](path)


def test_beside_the_variant_without(told):
  checked = {'milliseconds': 10.3, 'ratio': 1.0304, 'bar': 1.02}
  assert told('guards', {'none': _TIMED, 'guard': checked}) == [
    'the finite check: 10.3 ms a training step, 1.030 times as long as with '
    'neither (bar: ratio at most 1.02, **missed**)'
  ]
  variants = {
    f'{config}, {count}': {'rate': 3.0 * count, 'ratio': count, 'bar': None}
    for config in ('a', 'b')
    for count in (1, 2)
  }
  assert told('scaling', variants) == [
    'training a, 2: 6.00 steps/s, 2.000 times a, 1',
    'training b, 2: 6.00 steps/s, 2.000 times b, 1',
  ]
  variants = {
    'training': {'rate': 1e5, 'ratio': 1.0, 'bar': None},
    'device feed': {'rate': 3.2e7, 'ratio': 320.0, 'bar': 20},
  }
  assert told('data', variants, bars='ratio at least') == [
    'batches from a corpus on the device: 32,000,000 tokens/s, 320 times what '
    'training reads (bar: ratio at least 20)'
  ]


def test_training_beside_the_fastest_peer(told):
  ours = {
    'params': 1234,
    'precision': 'bfloat16',
    'chars_per_second': 23471.2,
    'speedup_float32': 3.0,
    'fastest_float32': 'torch float32',
    'speedup_any': 1.5,
    'fastest_any': 'torch bfloat16',
  }
  variants = {
    'craft': ours | {'bar': 2.5},
    'craft float32': ours | {'bar': None, 'precision': 'float32'},
    'torch bfloat16': {'chars_per_second': 15000.0, 'params': 1},
  }
  bars = 'speedup_float32 at least'
  of_both = (
    ', training 1,234 parameters: 23,471 characters/s, 1.50 times the fastest '
    'peer (PyTorch bfloat16) and 3.00 times the fastest in float32 (PyTorch '
    'float32)'
  )
  assert told('train_step-gpu-gpt2', variants, bars=bars) == [
    f'Craft in bfloat16{of_both} (bar: speedup float32 at least 2.5)',
    f'Craft in float32{of_both}',
  ]
  alone = {key: ours[key] for key in ('params', 'precision')}
  alone |= {'chars_per_second': 5.0, 'bar': 2.5}
  assert told('train_step-cpu', {'craft': alone}, bars=bars) == [
    'Craft in bfloat16, training 1,234 parameters: 5 characters/s'
  ]


def test_decoding_beside_every_peer(told):
  variants = {
    'craft, batch 1': {
      'chars_per_second': 100.0, 'share_of_copy': 0.5, 'bar': None,
      'least_chars_per_second': 5000,
    },
    'torch, no cache, batch 1': {
      'chars_per_second': 10.0, 'speedup': 12.0, 'bar': 8.0,
    },
    'transformers, batch 1': {
      'chars_per_second': 30.0, 'speedup': 3.0, 'bar': 3.5,
    },
  }  # fmt: skip
  assert told('decode-gpu', variants, bars='speedup at least') == [
    'text written by Craft, batch 1: 100 characters/s, parameters and cache '
    'read at 50.0% of the rate of an addition of arrays (bar: chars per second '
    'at least 5,000, **missed**)',
    'PyTorch, no cache, batch 1: 10 characters/s; Craft is 12.00 times as fast '
    '(bar: speedup at least 8)',
    'transformers, batch 1: 30 characters/s; Craft is 3.00 times as fast '
    '(bar: speedup at least 3.5, **missed**)',
  ]


def test_time_to_loss(told):
  torch = {'torch': 118.5, 'torch_reached': False}
  variants = {
    'loss 1.88': torch | {'craft': 41.3, 'speedup': 2.869, 'bar': 5.0},
    'loss 1.6': torch | {'craft': None, 'speedup': None, 'bar': None},
  }
  evaluations = {
    name: [[{'val_loss': 4.0}, {'val_loss': loss}] for loss in losses]
    for name, losses in {'craft': [1.58, 1.6], 'torch': [1.9, 1.92]}.items()
  }
  assert told(
    'time_to_loss', variants, evaluations=evaluations, bars='speedup at least'
  ) == [
    'tinyshakespeare after 2,000 steps: validation loss 1.5900 nats; '
    "nanoGPT's recipe in PyTorch 1.9100",
    'validation loss 1.88 on tinyshakespeare: reached after 41.3 s, more than '
    "2.87 times as soon as by nanoGPT's recipe in PyTorch (bar: speedup at "
    'least 5, **missed**)',
    'validation loss 1.6 on tinyshakespeare: not reached',
  ]


def test_quality(told):
  variants = {
    'baseline': {'val_loss': 1.9, 'seeds': 3},
    'recipe': {'val_loss': 1.585, 'seeds': 3},
    'recipe - Muon': {'val_loss': 1.67, 'seeds': 3},
  }
  (sentence,) = told('ablate', variants)
  assert '3 seeds: validation loss 1.5850 nats; 1.9000 without' in sentence
  row = {'after_training': 2.0288, 'alone': 2.4}
  assert told('compressors-text', {'xz': row}, split='valid') == [
    'xz: the validation split takes 2.0288 bits per byte after the training '
    'split, 2.4000 alone'
  ]


def test_a_script_without_sentences(told):
  variants = {'a': {'speed': 2.5, 'bar': 2.0}, 'b': {'bytes': 1}}
  assert told('new', variants, bars='speed at least') == [
    'a: speed 2.5 (bar: speed at least 2)'
  ]


def test_constraints_show_the_slowest(told):
  rows = {
    name: {'milliseconds': ms, 'bar': 1000.0} | more
    for name, ms, more in (
      ('a|b', 20.0, {}), ('c', 1.0, {}), ('d', 1200.0, {'refused': 'no'}),
    )
  }  # fmt: skip
  assert told('constraints', rows, bars='milliseconds at most') == [
    r'the slowest of 2 that are compiled, `a\|b`: 20 ms '
    '(bar: milliseconds at most 1,000)',
    'the slowest of 1 that are refused, `d`: 1200 ms '
    '(bar: milliseconds at most 1,000, **missed**)',
  ]


def test_quantized_has_bytes_bits_and_both_speeds(told):
  size = {'weight_bytes': 2e7, 'cache_bytes': 4.72e6}
  first, second = told(
    'quantized',
    {
      'auto': size | {'speedup_1': 1.0, 'speedup_16': 1.0},
      'int8 cache': size
      | {'speedup_1': 0.98765, 'speedup_16': 1.5, 'bits_per_byte': 2.16271},
    },
  )
  assert first.startswith('neither rounded: 20.00 MB of weights and 4.72 MB of')
  assert 'bits' not in first
  assert 'cache a text, 2.1627 bits per byte; one text' in second
  assert '0.99 times as fast' in second and 'sixteen 1.50 times' in second
