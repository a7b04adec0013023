"""Run directories that no training made."""

import json

import pytest

UNITS = {
  'tokens_per_step': 100, 'chars_per_token': 1.0, 'flops_per_token': 10.0,
}  # fmt: skip


def row_of(step, loss, **more):
  return {'step': step, 'loss': loss, 'nll': loss, 'learning_rate': 0.1,
          'batch': 7, 'chars_per_second': 5000.0} | more  # fmt: skip


def evaluation_of(step, loss, **more):
  return {'step': step, 'val_loss': loss, 'val_bpb': 1.4427 * loss,
          'val_count': 50.0, 'val_withheld': '',
          'val_classes': {'letter': {'nats': loss}},
          'val_positions': [{'first': 0, 'nats': loss}]} | more  # fmt: skip


def append(path, *rows):
  with open(path / 'metrics.jsonl', 'a') as file:
    for row in rows:
      file.write(json.dumps(row) + '\n')


@pytest.fixture
def make_run(run_maker, tmp_path):
  """`make_run(name, losses, settings, metadata)`: evaluated every 10 steps.

  A step takes 2 seconds; training losses are 0.1 below the evaluations.
  `make_run.row`, `.evaluation` and `.append` make further rows.
  """
  return run_maker(tmp_path)


@pytest.fixture(scope='session')
def run_maker():
  """`run_maker(folder)`: a `make_run` for tests that share runs there."""
  return _maker


def _maker(folder):
  def make(name, losses=(3.0, 2.0), settings=None, metadata=None):
    path = folder / name
    path.mkdir(parents=True)
    config = {'seed': 0, 'model': {'width': 32, 'context': 10},
              'train': {'steps': 10 * len(losses), 'batch_size': 10},
              'log': {'every': 1}}  # fmt: skip
    for key, value in (settings or {}).items():
      section, _, leaf = key.rpartition('.')
      (config.setdefault(section, {}) if section else config)[leaf] = value
    facts = {'status': 'finished', 'exit_reason': 'finished',
             'start_time': '2026-01-02T03:04:05+00:00', 'params': 12345,
             'corpus_fingerprint': 'c', 'vocabulary_fingerprint': 'v',
             'git_commit': 'abc'}  # fmt: skip
    facts |= UNITS | (metadata or {})
    (path / 'config.json').write_text(json.dumps(config))
    (path / 'metadata.json').write_text(json.dumps(facts))
    (path / 'metrics.jsonl').touch()
    for i, loss in enumerate(losses):
      for step in range(10 * i + 1, 10 * i + 11):
        append(path, row_of(step, loss - 0.1, seconds=2.0 * step))
      append(path, evaluation_of(step, loss, seconds=2.0 * step))
    return path

  make.append, make.row, make.evaluation = append, row_of, evaluation_of
  return make
