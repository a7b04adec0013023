"""`craft data stats` and `craft data prepare`."""

import argparse
import json

import pytest

from craft_jax.cli import data
from craft_jax.errors import UserError


@pytest.fixture
def run(tmp_path, capsys):
  """Runs the command on a config of its own; the exit code and the lines."""
  config = tmp_path / 'mine.py'
  config.write_text(
    'from craft_jax.config.load import default_config\n'
    'def get_config(variant=""):\n'
    '  config = default_config()\n'
    '  config.data.source = "path"\n'
    f'  config.data.cache_dir = {str(tmp_path / "cache")!r}\n'
    '  return config\n'
  )

  def call(*argv, overrides=()):
    parser = argparse.ArgumentParser(
      formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data.add_arguments(parser)
    args = parser.parse_args([*argv, f'--config={config}'])
    args.overrides = list(overrides)
    code = data.run(args)
    return code, capsys.readouterr().out.splitlines()

  return call


@pytest.fixture
def text(tmp_path):
  path = tmp_path / 'my.txt'
  path.write_text('AAaa\tb €\n' * 20, encoding='utf-8')
  return f'data.path={path}'


def test_stats(run, text):
  code, lines = run('stats', '--top=3', '--json', overrides=[text])
  assert code == 0
  facts = json.loads(lines[-1])
  assert facts['bytes'] == 220 and facts['characters'] == 180
  assert facts['distinct_characters'] == 7
  assert facts['most_frequent'] == [['A', 40], ['a', 40], ['\t', 20]]
  assert facts['least_frequent'] == [['€', 20], ['b', 20], [' ', 20]]
  assert [row['characters'] for row in facts['splits']] == [162, 18]
  assert [row['distinct'] for row in facts['splits']] == [7, 7]
  assert facts['vocabulary']['size'] == 260
  assert facts['bits_per_byte_withheld'] == ''
  shown = '\n'.join(lines[:-1])
  assert "40   22.22 %  'A' U+0041 LATIN CAPITAL LETTER A" in shown
  assert "'\\t' U+0009 TAB" in shown
  assert 'bits per byte  can be given' in shown
  assert 'no steps' in shown


def test_stats_reports_cleaning_and_unknown(run, text):
  overrides = [
    text,
    'text.vocabulary=char',
    'text.unknown=replace',
    'text.max_chars=2',
    "text.clean=('lower',)",
  ]
  _, lines = run('stats', overrides=overrides)
  shown = '\n'.join(lines)
  assert 'char: 2 tokens and 4 special tokens, stored as uint8' in shown
  assert any('lower' in line and '40 changed' in line for line in lines)
  assert 'withheld: cleaning was lossy (lower changed 40)' in shown
  assert '80 characters became UNK' in shown


def test_prepare_writes_once(run, text):
  code, lines = run('prepare', overrides=[text])
  assert code == 0 and lines[1].startswith('written in ')
  _, lines = run('prepare', '--json', overrides=[text])
  assert lines[1].startswith('reused in ')
  facts = json.loads(lines[-1])
  assert facts['reused'] and facts['seconds'] < 5
  assert facts['folder'] in lines[1]


def test_a_mistake_is_a_user_error(run):
  with pytest.raises(UserError, match=r'data\.path'):
    run('stats')
  with pytest.raises(UserError, match='does not exist'):
    run('prepare', overrides=['data.path=/nonesuch.txt'])


def test_an_action_is_needed(run):
  with pytest.raises(SystemExit):
    run()
