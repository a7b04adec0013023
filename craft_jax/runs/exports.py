"""Writers for TensorBoard, MLflow and Weights & Biases: all optional.

Nothing leaves the machine unless the environment asks for it with the
library's own variables (`MLFLOW_TRACKING_URI`, `WANDB_MODE`).
"""

import importlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.runs.background import Background
from craft_jax.runs.layout import TENSORBOARD
from craft_jax.runs.writers import JsonlWriter, Writer, to_json
from craft_jax.runtime import extras, files, strict_json

_MLFLOW_ID, _WANDB_ID = '.mlflow.json', '.wandb.json'
_MLFLOW_BATCH = 500  # metrics in one transaction; the library takes 1000
_MLFLOW_SECONDS = 2.0  # between two transactions
_TAGS = ('git_commit', 'host', 'backend', 'device_kind', 'corpus_fingerprint')


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
  """The numbers by the name that a tracker shows.

  `loss` becomes `train/loss`, `val_loss` becomes `val/loss`, what is nested
  is joined with `/`. Lists, texts and the batch's checksum are left out.
  """
  found: dict[str, float] = {}

  def add(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
      for key, inner in value.items():
        add(f'{name}/{key}', inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
      found[name] = float(value)

  for key, value in metrics.items():
    if key == 'batch':
      continue
    value = value if isinstance(value, float) else to_json(value)
    prefix = 'val' if key.startswith('val_') else 'train'
    add(f'{prefix}/{key.removeprefix("val_")}', value)
  return found


def events(metrics: Mapping[str, Any]) -> list[str]:
  """Why a step was left out, or the run went back."""
  return [
    f'{key}: {metrics[key]}'
    for key in ('skipped', 'rollback')
    if metrics.get(key)
  ]


class TensorBoardWriter:
  """Event files in the run directory's `tensorboard/`, by tensorboardX."""

  def __init__(
    self,
    workdir: epath.PathLike,
    step: int,
    cfg: Config,
    facts: Mapping[str, Any],
  ):
    """Continues after `step`; TensorBoard drops what it has of later ones."""
    from tensorboardX import SummaryWriter

    del facts
    self._writer = SummaryWriter(
      os.fspath(epath.Path(workdir) / TENSORBOARD),
      purge_step=step + 1,
      flush_secs=10,
      # Two starts within a second must not share a file.
      filename_suffix=f'.{step}',
    )
    if not step:
      self._block('config', config_lib.to_json(cfg), 0)

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records numbers of one step."""
    for name, value in scalars(metrics).items():
      self._writer.add_scalar(name, value, step)
    for text in events(metrics):
      self._writer.add_text('events', text, step)

  def text(self, step: int, text: str) -> None:
    """Records a sample; indented, so that it is shown as it is."""
    self._block('sample', text, step)

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Records the summary as text and closes."""
    summary = to_json(summary)
    self._block(
      'summary', strict_json.dumps(summary, indent=2), summary['step']
    )
    self.close()

  def close(self) -> None:
    """Closes the file. Repeatable."""
    self._writer.close()

  def _block(self, name: str, text: str, step: int) -> None:
    """Text that Markdown shows as it stands."""
    lines = text.encode(errors='replace').decode().split('\n')
    self._writer.add_text(name, '\n'.join(f'    {x}' for x in lines), step)


class MlflowWriter:
  """A run of MLflow, by default in `mlflow.db` beside the run directory."""

  def __init__(
    self,
    workdir: epath.PathLike,
    step: int,
    cfg: Config,
    facts: Mapping[str, Any],
  ):
    """Makes the run, or goes on with the one that was made before."""
    os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
    os.environ.setdefault('DO_NOT_TRACK', 'true')
    os.environ.setdefault('MLFLOW_LOGGING_LEVEL', 'WARNING')
    from mlflow.tracking import MlflowClient

    for name in ('mlflow', 'alembic'):  # would write into the bar
      logging.getLogger(name).setLevel(logging.WARNING)

    del step
    beside = os.path.dirname(_local(workdir))
    uri = os.environ.get('MLFLOW_TRACKING_URI') or (
      f'sqlite:///{os.path.join(beside, "mlflow.db")}'
    )
    self._client = MlflowClient(uri)
    self._metrics: list[Any] = []
    self._written = time.monotonic()
    path = epath.Path(workdir) / _MLFLOW_ID
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get('uri') == uri:
      self._id, self._going = known['run_id'], False
      return
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'craft')
    experiment = self._client.get_experiment_by_name(name)
    where = None
    if uri.startswith('sqlite:'):
      where = f'file://{os.path.join(beside, "mlflow-artifacts")}'
    number = (
      experiment.experiment_id
      if experiment
      else self._client.create_experiment(name, artifact_location=where)
    )
    run = self._client.create_run(
      number,
      run_name=epath.Path(workdir).name,
      tags={k: str(facts[k]) for k in _TAGS if k in facts},
    )
    self._id, self._going = run.info.run_id, True
    files.write_atomic(
      path, strict_json.dumps({'uri': uri, 'run_id': self._id})
    )
    from mlflow.entities import Param

    params = [
      Param(key, str(value)) for key, value in config_lib.flatten(cfg).items()
    ]
    for i in range(0, len(params), 100):  # the most it takes at once
      self._client.log_batch(self._id, params=params[i : i + 100])

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records numbers of one step; several are written at a time."""
    from mlflow.entities import Metric

    if not self._going:
      self._client.update_run(self._id, status='RUNNING')
      self._going = True
    now = int(time.time() * 1000)
    self._metrics += [
      Metric(name, value, now, step) for name, value in scalars(metrics).items()
    ]
    for text in events(metrics):
      self._client.set_tag(self._id, f'step {step}', text)
    if (
      len(self._metrics) >= _MLFLOW_BATCH
      or time.monotonic() - self._written > _MLFLOW_SECONDS
    ):
      self._write()

  def text(self, step: int, text: str) -> None:
    """Records a sample as an artifact."""
    shown = text.encode(errors='replace').decode()
    self._client.log_text(self._id, shown, f'samples/{step}.txt')

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Records the summary as an artifact; the run has finished."""
    self._client.log_dict(self._id, to_json(summary), 'summary.json')
    self._end('FINISHED')

  def close(self) -> None:
    """Records that the run goes no further for now."""
    self._end('KILLED')

  def _end(self, status: str) -> None:
    self._write()
    if self._going:  # a finished run that is only looked at stays as it is
      self._client.set_terminated(self._id, status)

  def _write(self) -> None:
    for i in range(0, len(self._metrics), _MLFLOW_BATCH):
      batch = self._metrics[i : i + _MLFLOW_BATCH]
      self._client.log_batch(self._id, metrics=batch)
    self._metrics, self._written = [], time.monotonic()


class WandbWriter:
  """A run of Weights & Biases, by default offline in the run directory."""

  def __init__(
    self,
    workdir: epath.PathLike,
    step: int,
    cfg: Config,
    facts: Mapping[str, Any],
  ):
    """Makes the run, or goes on with the one that was made before."""
    mode: Any = os.environ.get('WANDB_MODE', 'offline')
    if mode != 'online':
      os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
    import wandb

    del step
    path = epath.Path(workdir) / _WANDB_ID
    if not path.exists():
      files.write_atomic(path, strict_json.dumps({'id': secrets.token_hex(4)}))
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', 'craft'),
      name=epath.Path(workdir).name,
      id=json.loads(path.read_text())['id'],
      resume='allow',
      dir=_local(workdir),
      mode=mode,
      config=json.loads(config_lib.to_json(cfg))
      | {'run': {k: facts[k] for k in _TAGS if k in facts}},
      settings=wandb.Settings(silent=True, console='off'),
    )
    # Its own count may not go back, as a resumed run does.
    self._run.define_metric('*', step_metric='step')
    self._closed = False

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records numbers of one step."""
    row: dict[str, Any] = {'step': step} | scalars(metrics)
    if texts := events(metrics):
      row['events'] = '; '.join(texts)
    self._run.log(row)

  def text(self, step: int, text: str) -> None:
    """Records a sample."""
    shown = text.encode(errors='replace').decode()
    self._run.log({'step': step, 'sample': shown})

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Records the metrics of the run and closes."""
    self._run.summary.update(scalars(summary))
    self.close()

  def close(self) -> None:
    """Closes. Repeatable."""
    if not self._closed:
      self._closed = True
      self._run.finish()


def _local(workdir: epath.PathLike) -> str:
  """The run directory, or where that is in a store: here."""
  return os.path.abspath('run' if files.is_remote(workdir) else workdir)


# The setting's names, the modules they need, and what writes.
_EXPORTS: dict[str, tuple[tuple[str, ...], Callable[..., Writer]]] = {
  'tensorboard': (('tensorboardX',), TensorBoardWriter),
  'mlflow': (('mlflow', 'sqlalchemy', 'alembic'), MlflowWriter),
  'wandb': (('wandb',), WandbWriter),
}


def check_installed(cfg: Config) -> None:
  """Raises UserError if a writer of `log.writers` has no library here."""
  for name in cfg.log.writers:
    for module in _EXPORTS[name][0]:
      with extras.needed(f'log.writers={name}', name):
        importlib.import_module(module)


def open_writer(
  workdir: epath.PathLike,
  step: int,
  cfg: Config,
  facts: Mapping[str, Any],
  warn: Callable[[str], None],
) -> JsonlWriter:
  """The writer of a run: `metrics.jsonl` and those of `log.writers`.

  Args:
    workdir: the run directory.
    step: where the run stands.
    cfg: its config.
    facts: its metadata.
    warn: told once of each writer that fails.

  Raises:
    UserError: `metrics.jsonl` cannot be written.
  """

  def background(name: str) -> Background:
    make = _EXPORTS[name][1]
    return Background(name, lambda: make(workdir, step, cfg, facts), warn)

  others = [background(name) for name in cfg.log.writers]
  return JsonlWriter(workdir, step, warn, others)
