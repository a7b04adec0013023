"""Runs the trials of a plan, each as a process, until all have ended."""

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from craft_jax.config import load as config_lib
from craft_jax.errors import INTERRUPTED, UserError, one_line
from craft_jax.runs import curves, digest, layout, listing, metric_table
from craft_jax.runs.sweep import bayes, plan
from craft_jax.runs.sweep.bayes import PRUNED
from craft_jax.runs.sweep.logs import Logs
from craft_jax.runs.sweep.plan import Plan, Trial
from craft_jax.runs.sweep.processes import Process
from craft_jax.runs.sweep.space import Dimension
from craft_jax.runtime import files
from craft_jax.runtime.signals import Interrupts

PLANNED = 'planned'  # beside the states of a run
_POLL = 0.2  # seconds
_PULSE = 60.0  # seconds between two lines on a run that goes on
_REMOTE_LOOK = 5.0  # seconds between two looks at a run in an object store


@dataclasses.dataclass(frozen=True)
class Request:
  """The request of a user for a sweep.

  Attributes:
    folder: of the sweep.
    spec: the config, `PATH_OR_NAME[:variant]`.
    overrides: `name=value` of all runs.
    space: what varies.
    total: runs in all.
    prune: whether bayes gives up runs.
    shares: the environment of each run at a time.
  """

  folder: files.AnyPath
  spec: str
  overrides: Sequence[str]
  space: Sequence[Dimension]
  total: int
  prune: bool = True
  shares: Sequence[Mapping[str, str]] = ({},)

  def flags(self, trial: Trial) -> list[str]:
    """The flags of `craft train` for a trial."""
    return [
      f'--config={self.spec}',
      *(f'--config.{item}' for item in (*self.overrides, *trial.overrides)),
      f'--workdir={self.folder / trial.name}',
    ]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run has ended.

  Attributes:
    status: `finished`, `stopped` (it goes on with the same command), `failed`
      or `pruned`.
    reason: in words.
    code: its exit code; None where it was not started this time.
  """

  status: str
  reason: str
  code: int | None = None


def state_of(folder: files.AnyPath, trial: Trial) -> str:
  """`planned`, `pruned`, or the state that its run directory tells."""
  if trial.pruned is not None:
    return PRUNED
  try:
    metadata = json.loads((folder / trial.name / layout.METADATA).read_bytes())
    return listing.status_of(folder / trial.name, metadata)
  except (OSError, ValueError, AttributeError):
    return PLANNED


def evaluations(path: files.AnyPath, metric: str) -> dict[int, float]:
  """A metric of a run, local or remote, by step, where it is finite."""
  return curves.evaluations(listing.local_copy(path), metric)


def best_of(path: files.AnyPath, metric: str) -> float | None:
  """The best of a metric of a run, or None."""
  values = evaluations(path, metric).values()
  return metric_table.best(metric)(values, default=None)


class Sweep:
  """A sweep that runs.

  Attributes:
    plan: as it stands; that of bayes grows.
    outcomes: by name, of the runs that have ended.
  """

  def __init__(
    self,
    request: Request,
    start: Plan,
    interrupts: Interrupts,
    say: Callable[[str], None],
  ):
    """Takes what was finished before as ended.

    Args:
      request: what is to be done.
      start: the plan, which is kept already.
      interrupts: that have been told to wait.
      say: is called with a line at a time.
    """
    self.plan = start
    self.outcomes: dict[str, Outcome] = {}
    self._request, self._interrupts, self._say = request, interrupts, say
    self._running: list[Process] = []
    self._pruning: set[str] = set()
    self._seen: dict[str, int] = {}
    self._pulse: dict[str, float] = {}
    self._logs = Logs(request.folder)
    # Between two looks at the same run, each of which asks the store.
    self._rest = _REMOTE_LOOK if files.is_remote(request.folder) else 0.0
    self._looked: dict[str, float] = {}
    self._values: dict[str, dict[int, float]] = {}  # of those that have ended
    for trial in start.trials:
      state = state_of(request.folder, trial)
      if state == PRUNED:
        self.outcomes[trial.name] = Outcome(
          PRUNED, f'pruned at step {trial.pruned}'
        )
      elif state == layout.FINISHED:
        self.outcomes[trial.name] = Outcome(state, state)

  def run(self) -> None:
    """Runs all that has not ended; after a signal, until the running are saved.

    Raises:
      KeyboardInterrupt: the third Ctrl-C; the processes are killed.
    """
    try:
      while True:
        self._start_more()
        if not self._running:
          return
        time.sleep(_POLL)
        if self._interrupts.requested():
          for process in self._running:
            process.stop()
        for process in list(self._running):
          code = process.code()
          if code is None:
            self._look_at(process)
          else:
            self._running.remove(process)
            self._ended(process, code)
    finally:
      for process in self._running:
        process.kill()

  # --- starting ---------------------------------------------------------------

  def _start_more(self) -> None:
    while not self._interrupts.requested():
      busy = {process.slot for process in self._running}
      free = [s for s in range(len(self._request.shares)) if s not in busy]
      trial = self._next() if free else None
      if trial is None:
        return
      try:
        self._check(trial)
      except UserError as e:
        self._note(trial.name, Outcome(layout.FAILED, str(e)))
        continue
      going = state_of(self._request.folder, trial) != PLANNED
      self._tell(trial.name, 'goes on' if going else 'started')
      self._running.append(
        Process(
          trial.name,
          self._request.flags(trial),
          self._logs.file(trial.name),
          free[0],
          self._request.shares[free[0]],
        )
      )
      self._pulse[trial.name] = self._looked[trial.name] = time.monotonic()

  def _next(self) -> Trial | None:
    """The next run to start; the search adds it where all have begun."""
    running = {process.name for process in self._running}
    for trial in self.plan.trials:
      if trial.name not in self.outcomes and trial.name not in running:
        return trial
    done = len(self.plan.trials)
    if self.plan.search != 'bayes' or done >= self._request.total:
      return None
    point = bayes.suggest(
      self._request.space, self._history(), self.plan.draw_seed, self._higher
    )
    (trial,) = plan.make_trials([point], first=done)
    self._keep([*self.plan.trials, trial])
    return trial

  def _check(self, trial: Trial) -> None:
    """Raises UserError if it does not hold, or the config has been changed."""
    request = self._request
    overrides = [*request.overrides, *trial.overrides]
    cfg = config_lib.load_config(request.spec, overrides)
    now = plan.shared(cfg, trial.settings)
    if text := plan.changes(self.plan.settings, now):
      raise UserError(f'{request.spec} was changed meanwhile ({text})')

  def _keep(self, trials: Sequence[Trial]) -> None:
    self.plan = dataclasses.replace(self.plan, trials=trials)
    plan.write(self._request.folder, self.plan)

  # --- while they run ---------------------------------------------------------

  def _look_at(self, process: Process) -> None:
    if time.monotonic() - self._looked[process.name] < self._rest:
      return
    self._looked[process.name] = time.monotonic()
    path = self._request.folder / process.name
    if self.plan.search == 'bayes' and self._request.prune:
      self._consider(process, path)
    if time.monotonic() - self._pulse[process.name] < _PULSE:
      return
    self._pulse[process.name] = time.monotonic()
    self._logs.send(process.name)
    found = digest.read(listing.local_copy(path))
    if found.step:
      text, loss = f'step {found.step}', found.last.get('loss')
      self._tell(process.name, text + (f', loss {loss:.4f}' if loss else ''))

  def _consider(self, process: Process, path: files.AnyPath) -> None:
    """Asks a run that has no prospects to end, once per evaluation."""
    try:
      size = files.size(path / layout.METRICS)
    except FileNotFoundError:
      return
    if process.stopping or size == self._seen.get(process.name):
      return
    self._seen[process.name] = size
    values = evaluations(path, self.plan.metric)
    (trial,) = (t for t in self.plan.trials if t.name == process.name)
    one = bayes.Past(trial.settings, values, bayes.RUNNING)
    others = self._history(without=process.name)
    if bayes.is_hopeless(self._request.space, others, one, self._higher):
      self._pruning.add(process.name)
      process.stop()

  def _history(self, without: str = '') -> list[bayes.Past]:
    """The trials so far, as the search sees them."""
    going = Outcome(layout.RUNNING, '')
    return [
      bayes.Past(
        trial.settings,
        self._values_of(trial),
        self.outcomes.get(trial.name, going).status,
      )
      for trial in self.plan.trials
      if trial.name != without
    ]

  def _values_of(self, trial: Trial) -> dict[int, float]:
    """The metric by step; of a run that has ended it is read once."""
    if trial.name in self._values:
      return self._values[trial.name]
    path = self._request.folder / trial.name
    values = evaluations(path, self.plan.metric)
    if trial.name in self.outcomes:
      self._values[trial.name] = values
    return values

  @property
  def _higher(self) -> bool:
    return bool(metric_table.find(self.plan.metric).higher)

  # --- their ends -------------------------------------------------------------

  def _ended(self, process: Process, code: int) -> None:
    name = process.name
    self._logs.send(name)
    path = self._request.folder / name
    if code == INTERRUPTED and name in self._pruning:
      step = digest.read(listing.local_copy(path)).step
      self._keep([
        dataclasses.replace(trial, pruned=step) if trial.name == name else trial
        for trial in self.plan.trials
      ])  # fmt: skip
      outcome = Outcome(PRUNED, f'pruned at step {step}', code)
    elif code == INTERRUPTED:
      outcome = Outcome(layout.STOPPED, process.last_words(), code)
    elif code == -signal.SIGTERM and process.stopping:  # as it was starting
      outcome = Outcome(layout.STOPPED, 'stopped before it began', code)
    elif code:
      why = _failure(process, code, self._logs.name(name))
      outcome = Outcome(layout.FAILED, why, code)
    else:
      (trial,) = (t for t in self.plan.trials if t.name == name)
      state = state_of(self._request.folder, trial)
      took = f'{state} in {time.monotonic() - process.begin:.0f} s'
      outcome = Outcome(state, took, code)
    self._note(name, outcome, best_of(path, self.plan.metric))

  def _note(
    self, name: str, outcome: Outcome, best: float | None = None
  ) -> None:
    self.outcomes[name] = outcome
    text = outcome.reason
    if outcome.status == layout.FAILED:
      text = f'failed: {text}'
    elif best is not None:
      text += f', best {self.plan.metric} {best:.4f}'
    self._tell(name, text)

  def _tell(self, name: str, text: str) -> None:
    names = [trial.name for trial in self.plan.trials]
    number = names.index(name) + 1
    self._say(f'[{number}/{self._request.total}] {name}: {text}')


def _failure(process: Process, code: int, log: str) -> str:
  said = process.last_words()
  if code < 0:
    said = f'killed by {signal.Signals(-code).name}'
  return f'{said} (exit code {code}; {log})'


def as_dict(
  request: Request, found: Plan, outcomes: Mapping[str, Outcome]
) -> list[dict[str, Any]]:
  """The runs in JSON values."""
  rows = []
  for trial in found.trials:
    outcome = outcomes.get(trial.name)
    state = outcome.status if outcome else state_of(request.folder, trial)
    rows.append(
      {
        'name': trial.name,
        'settings': dict(trial.settings),
        'status': state,
        'reason': one_line(Exception(outcome.reason)) if outcome else '',
        'best': best_of(request.folder / trial.name, found.metric),
      }
    )
  return rows
