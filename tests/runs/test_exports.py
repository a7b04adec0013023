"""TensorBoard, MLflow and Weights & Biases, read back by their own readers."""

import json
import math
import os
import pathlib
import struct
import subprocess
import sys

import pytest

from craft_jax.config.settings import Config, Log, Model
from craft_jax.errors import UserError
from craft_jax.runs import exports
from craft_jax.runs.exports import open_writer

FACTS = {'git_commit': 'abc+', 'host': 'here', 'device_kind': 'cpu'}
ROWS = {
  1: {'loss': 3.0, 'batch': 77, 'grad_norm': math.nan},
  2: {'loss': 2.0, 'val_loss': 2.5, 'val_withheld': '',
      'val_classes': {'letter': {'nats': 1.5}}, 'val_positions': [{'a': 1}]},
  3: {'skipped': 'the loss is not finite'},
  4: {'loss': 1.0},
}  # fmt: skip


def config(name):
  return Config(seed=3, model=Model(width=12), log=Log(writers=(name,)))


def write(path, name, stop=4, start=0, warn=None):
  """The rows after `start` up to `stop`, a sample, and a summary at 4."""
  warned = []
  path.mkdir(parents=True, exist_ok=True)
  writer = open_writer(path, start, config(name), FACTS, warn or warned.append)
  for step, figures in ROWS.items():
    if start < step <= stop:
      writer.log(step, figures)
  if stop == 4:
    writer.text(4, 'To be,\nor *not* \udcff')
    writer.finish({'step': 4, 'val_loss': 2.5})
  writer.close()
  assert not warned


def test_names_of_scalars():
  assert exports.scalars(ROWS[2]) == {
    'train/loss': 2.0,
    'val/loss': 2.5,
    'val/classes/letter/nats': 1.5,
  }
  found = exports.scalars(ROWS[1])
  assert set(found) == {'train/loss', 'train/grad_norm'}
  assert math.isnan(found['train/grad_norm'])
  assert exports.scalars(ROWS[3]) == {}
  assert exports.events(ROWS[3]) == ['skipped: the loss is not finite']


def test_a_missing_library_is_told_before_the_work(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)  # as if not installed
  exports.check_installed(Config())
  with pytest.raises(UserError, match=r"pip install 'craft-jax\[wandb\]'"):
    exports.check_installed(config('wandb'))


@pytest.mark.slow
def test_tensorboard(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
  )

  write(tmp_path, 'tensorboard', stop=2)
  # Killed after the checkpoint at 1: the second row is written again.
  write(tmp_path, 'tensorboard', start=1)
  found = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
  assert [(e.step, e.value) for e in found.Scalars('train/loss')] == [
    (1, 3.0), (2, 2.0), (4, 1.0),
  ]  # fmt: skip
  assert [e.value for e in found.Scalars('val/loss')] == [2.5]

  def text(tag):
    (event,) = found.Tensors(f'{tag}/text_summary')
    return event.step, event.tensor_proto.string_val[0].decode()

  assert text('sample') == (4, '    To be,\n    or *not* ?')
  assert text('events') == (3, 'skipped: the loss is not finite')
  step, shown = text('config')
  assert step == 0 and json.loads(shown)['model']['width'] == 12
  assert json.loads(text('summary')[1]) == {'step': 4, 'val_loss': 2.5}


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # the library's own
def test_mlflow(tmp_path, monkeypatch):
  from mlflow.tracking import MlflowClient

  monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
  monkeypatch.delenv('MLFLOW_EXPERIMENT_NAME', raising=False)
  write(tmp_path / 'a', 'mlflow', stop=2)
  client = MlflowClient(f'sqlite:///{tmp_path / "mlflow.db"}')
  experiment = client.get_experiment_by_name('craft')
  (run,) = client.search_runs([experiment.experiment_id])
  assert run.info.status == 'KILLED'
  write(tmp_path / 'a', 'mlflow', start=2)
  write(tmp_path / 'b', 'mlflow')
  runs = client.search_runs([experiment.experiment_id])
  assert sorted(r.info.run_name for r in runs) == ['a', 'b']
  for run in runs:
    assert run.info.status == 'FINISHED'
    assert run.data.params['model.width'] == '12'
    assert run.data.tags['git_commit'] == 'abc+'
    assert run.data.tags['step 3'] == 'skipped: the loss is not finite'
    history = client.get_metric_history(run.info.run_id, 'train/loss')
    assert [(m.step, m.value) for m in history] == [(1, 3), (2, 2), (4, 1)]
    folder = pathlib.Path(run.info.artifact_uri.removeprefix('file://'))
    shown = (folder / 'samples' / '4.txt').read_text()
    assert shown == 'To be,\nor *not* ?'
    assert folder.is_relative_to(tmp_path)
  # A finished run that starts again stays finished.
  write(tmp_path / 'b', 'mlflow', start=4, stop=0)
  assert client.get_run(runs[0].info.run_id).info.status == 'FINISHED'
  assert client.get_run(runs[1].info.run_id).info.status == 'FINISHED'


@pytest.mark.slow
def test_wandb(tmp_path):
  """In a process of its own: the library hooks into the one it runs in."""
  script = (
    'import pathlib, sys, tests_exports as t\n'
    'path = pathlib.Path(sys.argv[1])\n'
    't.write(path, "wandb", stop=2); t.write(path, "wandb", start=1)\n'
  )
  (tmp_path / 'tests_exports.py').write_text(pathlib.Path(__file__).read_text())
  env = {k: v for k, v in os.environ.items() if not k.startswith('WANDB')}
  done = subprocess.run(
    [sys.executable, '-c', script, str(tmp_path / 'run')],
    env=env | {'PYTHONPATH': os.pathsep.join([str(tmp_path), *sys.path])},
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stderr
  files = sorted((tmp_path / 'run' / 'wandb').glob('offline-run-*/*.wandb'))
  assert len(files) == 2 and len({f.name for f in files}) == 1  # one id
  rows, settings, summary = _read_wandb(files)
  losses = [(r['step'], r['train/loss']) for r in rows if 'train/loss' in r]
  assert losses == [(1, 3.0), (2, 2.0), (2, 2.0), (4, 1.0)]
  assert [r['sample'] for r in rows if 'sample' in r] == ['To be,\nor *not* ?']
  assert [r['events'] for r in rows if 'events' in r]
  assert settings['model']['width'] == 12
  assert summary['val/loss'] == 2.5


def _read_wandb(files):
  """Rows, config and summary, by the library's own messages."""
  from wandb.proto import wandb_internal_pb2

  def loaded(items):
    return {
      i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in items
    }

  rows, settings, summary = [], {}, {}
  for file in files:
    for data in _frames(file.read_bytes()):
      record = wandb_internal_pb2.Record.FromString(data)
      rows += [loaded(record.history.item)] if record.history.item else []
      settings |= loaded(record.run.config.update)
      summary |= loaded(record.summary.update)
  return rows, settings, summary


def _frames(data):
  """Records of the log format of LevelDB, after a head of 7 bytes."""
  at, record = 7, b''
  while at < len(data):
    if 32768 - at % 32768 < 7:  # a block's end has no room for a head
      at += 32768 - at % 32768
    size, kind = struct.unpack_from('<HB', data, at + 4)
    record += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or the last part
      yield record
      record = b''


@pytest.mark.slow
def test_a_broken_writer_never_stops_a_run(tmp_path):
  (tmp_path / 'tensorboard').write_text('a file, where a folder should be')
  warned = []
  write(tmp_path, 'tensorboard', warn=warned.append)
  assert len(warned) == 1 and 'nothing more goes to tensorboard' in warned[0]
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2, 3, 4, 4]
  assert json.loads((tmp_path / 'summary.json').read_text())['step'] == 4
