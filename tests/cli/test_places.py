"""Where a run, or its text, cannot be: one line that says so."""

import pytest

from craft_jax.main import main

_COMMANDS = [
  ['train', '--config=toy', '--workdir={}'],
  ['eval', '--workdir={}'],
  ['sample', '--workdir={}'],
  ['inspect', '--workdir={}'],
  ['sweep', '--config=toy', '--set=seed=1,2', '--workdir={}'],
  ['config', 'check', '--config=toy', '--workdir={}'],
  ['config', 'show', '{}'],
  ['runs', 'list', '{}'],
  ['runs', 'show', '{}'],
  ['runs', 'rm', '{}'],
  ['scaling', '{}'],
  ['train', '--config=text', '--config.data.path={}', '--workdir=run'],
]
_PLACES = [
  'az://bucket/run', 'file:///run', 'http://host/run',
  'hf://user/run', 'foo://run', 'GS://bucket/run', 's3:/bucket/run',
]  # fmt: skip


@pytest.mark.parametrize('words', _COMMANDS, ids=lambda words: ' '.join(words))
def test_place_that_cannot_be(words, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for place in _PLACES:
    assert main([word.format(place) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('craft: ') and place in line
    assert not list(tmp_path.iterdir())


def test_store_without_a_bucket(capsys):
  for place in ('gs://', 's3:///run', 'gs:/bucket/run', '/s3/bucket/run'):
    assert main(['eval', f'--workdir={place}']) == 2
    assert 'gs://BUCKET/FOLDER or s3://BUCKET' in capsys.readouterr().err


def test_store_with_a_pattern(capsys):
  """Deleting gs://bucket/a[1] must not delete gs://bucket/a1."""
  for place in ('gs://bucket/lr=[0.1]', 's3://bucket/a*', 'gs://bucket/a?'):
    assert main(['runs', 'rm', place, '--yes']) == 2
    assert 'stands for other names' in capsys.readouterr().err
