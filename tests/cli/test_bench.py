"""`craft bench` lists the checkout's benchmarks, runs them, keeps results."""

import json
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from craft_jax.cli import bench
from craft_jax.main import main

_ROOT = pathlib.Path(__file__).parents[2]
_PROGRAM = runpy.run_path(str(bench.PROGRAM))
_RESULT = {
  'device': 'gpu-1-h200',
  'variants': {
    'plain': {'ratio': 1.0, 'bar': None},
    'quick': {'ratio': 1.01, 'bar': 1.02},
    'slow': {'ratio': 1.5, 'bar': 1.02},
  },
}
_SCRIPT = '''"""Is it quick?

More of it.
"""
import json, os, sys

import measure

def main():
  print('flags', *sys.argv[1:])
  print('to the side', file=sys.stderr)
  print(os.environ.get('LAST', json.dumps(measure.RESULT)))
  sys.exit(int(os.environ.get('CODE', 0)))

if __name__ == '__main__':
  main()
'''


def pretend_device(monkeypatch, name):
  monkeypatch.setattr(bench.runpy, 'run_path', lambda path: _PROGRAM)
  names = _PROGRAM['run'].__globals__
  monkeypatch.setitem(names, '_device', lambda folder: name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A benchmarks folder with one benchmark that needs no JAX."""
  folder = tmp_path / 'benchmarks'
  (folder / 'peers').mkdir(parents=True)
  (folder / 'measure.py').write_text(
    f'RESULT = {_RESULT!r}\n'
    'if __name__ == "__main__":\n  print(RESULT["device"])\n'
  )
  (folder / 'quick.py').write_text(_SCRIPT)
  (folder / 'tables.py').write_text('"""Writes tables."""\ndef main(): ...\n')
  (folder / 'parts.py').write_text('"""Shared."""\nimport measure\n')
  (folder / 'peers' / 'other.py').write_text(_SCRIPT)
  monkeypatch.setattr(bench, 'FOLDER', folder)
  return folder


def _kept(folder):
  return folder / 'results' / 'gpu-1-h200' / 'quick.json'


def test_runs_with_the_flags_and_keeps_nothing(folder, capfd):
  assert main(['bench', 'quick', '--pairs', '3', '--json']) == 0
  out, err = capfd.readouterr()
  lines = out.splitlines()
  assert lines[0] == 'flags --pairs 3 --json' and err == 'to the side\n'
  assert json.loads(lines[-1]) == _RESULT
  assert not (folder / 'results').exists()


def test_help_is_the_scripts_own(folder, capfd):
  assert main(['bench', 'quick', '--help']) == 0
  assert capfd.readouterr().out.startswith('flags --help\n')


def test_settings_go_to_the_script(folder, capfd):
  flags = ['--config.model.width=8', '--config.seed', '3', '--pairs=2']
  assert main(['bench', 'quick', *flags]) == 0
  first = capfd.readouterr().out.splitlines()[0]
  assert first == 'flags --pairs=2 --set=model.width=8 --set=seed=3'


@pytest.mark.parametrize(
  'argv', [['--save', 'quick', '--a'], ['quick', '--a', '--save']]
)
def test_save_keeps_the_last_line(folder, capfd, argv):
  assert main(['bench', *argv]) == 0
  out, err = capfd.readouterr()
  assert out.splitlines()[0] == 'flags --a'
  assert json.loads(out.splitlines()[-1]) == _RESULT
  assert 'quick.json' in err
  text = _kept(folder).read_text()
  assert text == json.dumps(_RESULT, indent=2) + '\n'
  assert [p.name for p in _kept(folder).parent.iterdir()] == ['quick.json']


def test_a_script_with_several_results(folder, monkeypatch, capfd):
  for case in ('a', 'b'):
    monkeypatch.setenv('LAST', json.dumps(_RESULT | {'case': case}))
    assert main(['bench', 'quick', '--save']) == 0
  names = [p.name for p in _kept(folder).parent.iterdir()]
  assert sorted(names) == ['quick-a.json', 'quick-b.json']
  pretend_device(monkeypatch, _RESULT['device'])
  capfd.readouterr()
  assert main(['bench']) == 0
  out = capfd.readouterr().out
  assert 'a: ' in out and 'b: ' in out
  monkeypatch.setenv('LAST', json.dumps(_RESULT | {'case': '../c'}))
  assert main(['bench', 'quick', '--save']) == 1


def test_the_exit_code_is_passed_on(folder, monkeypatch):
  monkeypatch.setenv('CODE', '7')
  assert main(['bench', 'quick']) == 7
  assert main(['bench', 'quick', '--save']) == 7
  assert not (folder / 'results').exists()


def test_a_script_ended_by_a_signal(folder):
  source = 'import os\nimport measure\ndef main(): ...\nos.kill(os.getpid(), 9)'
  (folder / 'dies.py').write_text(source)
  assert main(['bench', 'dies']) == 128 + 9


@pytest.mark.parametrize(
  'last', ['words', '[1]', '{}', '{"device": "../x"}', '{"device": 3.5}']
)
def test_only_a_result_of_a_device_is_kept(folder, monkeypatch, capfd, last):
  monkeypatch.setenv('LAST', last)
  assert main(['bench', 'quick', '--save']) == 1
  err = capfd.readouterr().err
  assert 'the last line of quick is not a JSON object' in err
  assert not (folder / 'results').exists()


@pytest.mark.parametrize(
  'argv, words',
  [
    (['quik'], "no benchmark 'quik', did you mean 'quick'? there are: quick"),
    (['tables'], 'there are: quick'),
    (['measure'], 'there are: quick'),
    (['--save'], 'which benchmark? there are: quick'),
    (['--config.seed=1'], 'which benchmark? there are: quick'),
  ],
)
def test_mistakes(folder, capfd, argv, words):
  assert main(['bench', *argv]) == 2
  out, err = capfd.readouterr()
  assert err.count('\n') == 1 and not out
  assert words in err.replace('; there', ' there')


def test_an_installed_package_has_none(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(bench, 'PROGRAM', tmp_path / 'benchmarks' / 'bench.py')
  for argv in (['bench'], ['bench', 'quick']):
    assert main(argv) == 2
    err = capfd.readouterr().err
    assert 'checkout' in err and err.count('\n') == 1


def test_list_without_results(folder, capfd):
  assert main(['bench']) == 0
  out, err = capfd.readouterr()
  assert out.splitlines()[0] == '  quick  Is it quick?'
  assert 'No figures of this device are kept' in out and not err
  assert not re.search('tables|parts|other|slow', out)


def test_list_with_results(folder, capfd):
  assert main(['bench', 'quick', '--save']) == 0
  (folder / 'results' / 'cpu-2-epyc').mkdir()
  capfd.readouterr()
  assert main(['bench']) == 0
  lines = capfd.readouterr().out.splitlines()
  assert [line.strip() for line in lines[:3]] == [
    'quick  Is it quick?',
    'quick: 1.01 (at most 1.02)',
    'slow: 1.5 (at most 1.02, missed)',
  ]
  assert lines[-2] == 'The figures are those of gpu-1-h200.'
  assert 'cpu-2-epyc' in lines[-1]


def test_list_where_the_device_cannot_be_told(folder, capfd):
  _kept(folder).parent.mkdir(parents=True)
  _kept(folder).write_text(json.dumps(_RESULT))
  (folder / 'measure.py').write_text('raise SystemExit("no driver")')
  assert main(['bench']) == 0
  out, err = capfd.readouterr()
  assert err == 'craft: the device cannot be told: no driver\n'
  assert 'slow' not in out and 'some of gpu-1-h200' in out


@pytest.mark.parametrize(
  'bars, row, figure',
  [
    ('ratio at least', {'ratio': 19, 'bar': 20}, '19 (at least 20, missed)'),
    ('ratio at least', {'ratio': 317.87, 'bar': 20}, '317.9 (at least 20)'),
    ('seconds at most', {'seconds': 4.3, 'bar': 5}, '4.3 s (at most 5 s)'),
    ('ratio at most', {'ratio': 1.2}, '1.2'),
  ],
)
def test_figures(bars, row, figure):
  result = {'bars': bars, 'variants': {'a': row, 'b': {'other': 1}}}
  assert list(_PROGRAM['_figures'](result)) == [f'a: {figure}']


def test_list_of_the_checkout(monkeypatch, capsys):
  pretend_device(monkeypatch, 'cpu-2-epyc')
  assert main(['bench']) == 0
  out = capsys.readouterr().out
  names = re.findall(r'^  ([a-z_]+) +\S', out, re.MULTILINE)
  wanted = {'checkpoint', 'data', 'guards', 'meshes', 'scaling', 'startup'}
  assert wanted <= set(names)
  others = {'measure', 'pages', 'recipe', 'scaling_tables', 'tables', 'workers'}
  assert not others & set(names)
  assert 'fsdp: ' in out and '(at most 1.15' in out


def test_the_page_lists_every_script():
  page = (_ROOT / 'docs' / 'benchmarks.md').read_text(encoding='utf-8')
  _, _, scripts = page.partition('\n## The scripts\n')
  scripts, _, _ = scripts.partition('\n## ')
  rows = re.findall(r'^\| `(\w+)` \|', scripts, re.MULTILINE)
  assert sorted(rows) == sorted(_PROGRAM['_scripts'](bench.FOLDER))


def test_the_command_does_without_jax():
  code = 'import sys, craft_jax.cli.bench; sys.exit("jax" in sys.modules)'
  done = subprocess.run([sys.executable, '-c', code], cwd=_ROOT)
  assert done.returncode == 0


@pytest.fixture(scope='module')
def measure():
  """The names of benchmarks/measure.py."""
  return runpy.run_path(str(_ROOT / 'benchmarks' / 'measure.py'))


@pytest.mark.parametrize(
  'device, slug',
  [
    (('cpu', 2, 'AMD EPYC'), 'cpu-2-epyc'),
    (('cpu', 8, 'AMD EPYC 7B13 64-Core Processor'), 'cpu-8-epyc-7b13'),
    (
      ('cpu', 4, 'Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz'),
      'cpu-4-xeon-platinum-8481c',
    ),
    (('cpu', 8, 'arm64'), 'cpu-8-arm64'),
    (('gpu', 1, 'NVIDIA H200'), 'gpu-1-h200'),
    (('gpu', 8, 'NVIDIA A100-SXM4-80GB'), 'gpu-8-a100-sxm4-80gb'),
    (('tpu', 4, 'TPU v5 lite'), 'tpu-4-v5-lite'),
  ],
)
def test_slugs(measure, device, slug):
  assert measure['slug'](*device) == slug


def test_turns_alternate_and_the_first_is_left_out(measure):
  order = []

  def variant(name):
    return lambda: order.append(name) or len(order)

  found = measure['in_turns']({n: variant(n) for n in 'ab'}, 2)
  assert ''.join(order) == 'baabba'
  assert found == {'a': [3, 6], 'b': [4, 5]}


def test_reports_end_in_one_object(measure, capsys):
  measure['report'](
    'q?', {'a': [1.0, 2.0, 4.0], 'b': [2.0, 4.0, 8.0]}, 'a', 10, {'b': 1.5}
  )
  last = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert re.fullmatch(r'[a-z]+-\d+-.*', last['device'])
  assert (last['rounds'], last['bars']) == (3, 'ratio at most')
  row = last['variants']['b']
  assert (row['milliseconds'], row['ratio'], row['bar']) == (400, 2, 1.5)
  assert row['ratio_quartiles'] == [2, 2]
  assert list(_PROGRAM['_figures'](last)) == ['b: 2 (at most 1.5, missed)']

  rates = {'a': [10.0, 30.0], 'b': [20.0, 60.0]}
  bases = dict.fromkeys(rates, 'a')
  measure['report_rates']('q?', rates, bases, 'x/s', {'b': 1.5}, devices=4)
  last = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert last['devices'] == 4 and last['variants']['a']['rate'] == 20
  assert list(_PROGRAM['_figures'](last)) == ['b: 2 (at least 1.5)']

  parts = {'cold': [{'x': 1.0, 'y': 2.0}, {'x': 3.0, 'y': 2.0}]}
  measure['report_seconds']('q?', parts, {'cold': 5.0}, 2)
  last = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert last['variants']['cold']['parts'] == {'x': 2, 'y': 2}
  assert list(_PROGRAM['_figures'](last)) == ['cold: 4 s (at most 5 s)']
