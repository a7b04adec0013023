"""What the benchmarks share, where a slip would go unseen."""

import pathlib
import runpy
import sys

import pytest

_FOLDER = pathlib.Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def measure():
  """The names of benchmarks/measure.py."""
  return runpy.run_path(str(_FOLDER / 'measure.py'))


@pytest.mark.parametrize(
  ('only', 'want'),
  [
    (None, {'craft', 'craft float32', 'torch', 'torch compiled'}),
    ('craft', {'craft'}),
    ('float', {'craft float32'}),
    ('craft,compiled', {'craft', 'torch compiled'}),
    ('other', set()),
  ],
)
def test_a_name_is_that_variant_and_a_part_all_that_have_it(
  measure, only, want
):
  names = dict.fromkeys(('craft', 'craft float32', 'torch', 'torch compiled'))
  assert measure['chosen'](names, only) == want


def test_a_command_names_files_and_not_where_they_lie(
  measure, monkeypatch, tmp_path
):
  path = tmp_path / 'text.txt'
  path.touch()
  argv = ['x.py', str(path), f'--data={path}', '--set=a.b=c', '--pairs', '3']
  monkeypatch.setattr(sys, 'argv', argv)
  want = ['text.txt', '--data=text.txt', '--set=a.b=c', '--pairs', '3']
  assert measure['command']() == want
