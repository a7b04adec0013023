"""A TFDS data set, prepared here as array_record, without TensorFlow."""

import json
import shutil
import sys

import numpy as np
import pytest

from craft_jax.config.settings import Config, Data
from craft_jax.data import sources
from craft_jax.data.prepare import open_corpus
from craft_jax.errors import UserError
from craft_jax.main import main

tfds = pytest.importorskip('tensorflow_datasets')

TEXTS = {
  'train': [f'document {i} for training, über' for i in range(12)],
  'validation': ['held out', 'and held out'],
  'test': ['never seen'],
}


def prepare(folder, name, parts):
  """Writes a data set of `parts` with the features text, number and words."""

  class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # no downloads, so TFDS need not look for checksums

    def _info(self):
      features = {
        'text': tfds.features.Text(),
        'number': tfds.features.Scalar(np.int64),
        'words': tfds.features.Sequence(tfds.features.Text()),
      }
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {part: self._generate_examples(part) for part in parts}

    def _generate_examples(self, part):
      for i, text in enumerate(parts[part]):
        yield i, {'text': text, 'number': i, 'words': text.split()}

  Builder.name = name
  Builder(
    data_dir=str(folder), file_format='array_record'
  ).download_and_prepare()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  with tfds.core.registered.skip_registration():
    prepare(path, 'letters', TEXTS)
    prepare(path, 'only_train', {'train': TEXTS['train']})
    prepare(path, 'only_test', {'test': TEXTS['test']})
  return path


def settings(folder, name='letters', **more):
  given = {'source': 'tfds', 'tfds_name': name, 'tfds_dir': str(folder)}
  return Data(**(given | more))


def test_the_given_parts(folder, tmp_path):
  data = settings(folder, split='given', cache_dir=str(tmp_path))
  corpus = open_corpus(Config(data=data))
  assert 'tensorflow' not in sys.modules
  assert corpus.summary.startswith('TFDS letters/1.0.0')
  for split, part in zip(
    corpus.splits, ('train', 'validation', 'test'), strict=True
  ):
    shown = corpus.vocabulary.decode(split.tokens)
    assert len(shown) == split.num_chars == sum(map(len, TEXTS[part]))
    separated = ''.join(
      '|' if token == corpus.vocabulary.bos else chr(token)
      for token in split.tokens
    )
    texts = {t.encode('latin-1').decode('utf-8') for t in separated.split('|')}
    assert texts == set(TEXTS[part])
    assert split.documents == len(TEXTS[part])
  assert open_corpus(Config(data=data)).reused


@pytest.mark.parametrize('split', ['fraction', 'file'])
def test_other_splits_cut_the_training_part(folder, tmp_path, split):
  data = settings(folder, split=split, cache_dir=str(tmp_path))
  corpus = open_corpus(Config(data=data))
  total = sum(part.num_chars for part in corpus.splits)
  assert total == sum(map(len, TEXTS['train']))
  assert corpus.documents == 12 and corpus.test is None


def test_a_name_with_its_version(folder):
  source = sources.open_source(settings(folder, 'letters:1.0.0'))
  assert len(source.parts['all']) == 12


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tfds_name': 'nonesuch'}, 'no TFDS data set .*file_format=array_record'),
    ({'tfds_name': 'letters:9.9.9'}, 'data.tfds_name'),
    ({'tfds_name': 'tiny_shakespeare'}, 'not prepared as array_record'),
    ({'tfds_name': 'tiny_shakespeare:7.0.0'}, 'only: 1.0.0'),
    ({'tfds_name': 'bad name//'}, 'cannot open bad name//'),
    ({'tfds_dir': '/nonesuch'}, 'data.tfds_dir=/nonesuch does not exist'),
    ({'tfds_field': 'txt'}, 'its texts are: text'),
    ({'tfds_field': 'number'}, 'its texts are: text'),
    ({'tfds_field': 'words'}, 'its texts are: text'),
    ({'tfds_name': 'only_test'}, 'has no train part, only: test'),
    (
      {'tfds_name': 'only_train', 'split': 'given'},
      'has no valid part, only: train; use --config.data.split=fraction',
    ),
  ],
)
def test_mistakes_are_one_line(folder, changes, message):
  with pytest.raises(UserError, match=message) as error:
    sources.open_source(settings(folder, **changes))
  assert '\n' not in str(error.value)


def test_another_file_format(folder, tmp_path):
  shutil.copytree(folder / 'letters', tmp_path / 'letters')
  path = tmp_path / 'letters' / '1.0.0' / 'dataset_info.json'
  info = json.loads(path.read_text())
  info['fileFormat'] = 'tfrecord'
  path.write_text(json.dumps(info))
  with pytest.raises(UserError, match=r"\['tfrecord'\]; prepare it") as error:
    sources.open_source(settings(tmp_path))
  assert '\n' not in str(error.value)


def test_without_the_package(monkeypatch, folder):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(UserError, match=r"pip install 'craft-jax\[tfds\]'"):
    sources.open_source(settings(folder))


@pytest.mark.slow
def test_trains_on_it(folder, tmp_path, capsys, monkeypatch):
  """`craft train --config=tfds:NAME`, then evaluates and samples."""
  monkeypatch.chdir(tmp_path)
  train = [
    '--config=tfds:letters',
    f'--config.data.tfds_dir={folder}',
    f'--config.data.cache_dir={tmp_path / "cache"}',
    '--config.data.split=given',
    '--config.model.context=8',
    '--config.model.width=16',
    '--config.model.depth=1',
    '--config.model.num_heads=1',
    '--config.train.steps=6',
    '--config.optim.warmup_steps=1',
    '--workdir=run',
    '--json',
  ]
  assert main(train) == 0
  out = capsys.readouterr().out
  figures = json.loads(out.splitlines()[-1])
  assert figures['step'] == 6
  for key in (
    'val_loss', 'val_bpc', 'val_bpb', 'chars_per_second', 'wall_seconds',
    'params',
  ):  # fmt: skip
    assert figures[key] > 0
  # The two held-out documents, without the first character of the first; the
  # separator between them does not count.
  assert figures['val_count'] == len('held out' + 'and held out') - 1
  assert main(['eval', '--workdir=run', '--split=test', '--json']) == 0
  scored = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert scored['test_count'] == len('never seen') - 1
  sample = ['sample', '--workdir=run', '--prompt=do', '--max-chars=5']
  assert main(sample) == 0
  assert capsys.readouterr().out.startswith('do')
