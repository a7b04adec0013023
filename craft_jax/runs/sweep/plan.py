"""The plan of a sweep: its runs by name, kept in `sweep.json`."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.runs import layout
from craft_jax.runs.sweep.space import Dimension, corners, draw, text_of
from craft_jax.runtime import files, strict_json

PLAN = 'sweep.json'
_FORMAT = 1
_LONGEST_NAME = 120  # characters; file systems allow 255 bytes
_SHOWN = 3  # settings in a message
_MOST_CHECKS = 256  # combinations of a search whose runs are not known yet


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run of the sweep.

  Attributes:
    name: of its folder.
    settings: `{'model.width': 256, ...}`, what sets it apart, in JSON values.
    pruned: the step at which the search gave it up, or None.
  """

  name: str
  settings: Mapping[str, Any]
  pruned: int | None = None

  @property
  def overrides(self) -> list[str]:
    """`['model.width=256', ...]`."""
    return [f'{k}={text_of(v)}' for k, v in self.settings.items()]


@dataclasses.dataclass(frozen=True)
class Plan:
  """A sweep.

  Attributes:
    search: `grid`, `random` or `bayes`.
    space: `{'model.width': '128,256'}` as it was asked for.
    draw_seed: of random and bayes.
    metric: what bayes looks at.
    settings: those that identify its runs and that all share, as JSON values.
    trials: the runs; of bayes those that have begun.
    command: that asked for it, for people.
  """

  search: str
  space: Mapping[str, str]
  draw_seed: int
  metric: str
  settings: Mapping[str, Any]
  trials: Sequence[Trial]
  command: Sequence[str]


def make_trials(
  points: Iterable[Mapping[str, Any]],
  seeds: Sequence[int] = (),
  first: int | None = None,
) -> list[Trial]:
  """The runs of combinations, each once per seed.

  Args:
    points: the combinations.
    seeds: empty: that of the config.
    first: number of the first combination, to be in the names; None: none.

  Raises:
    UserError: two would have one folder.
  """
  found: dict[str, Trial] = {}
  for number, point in enumerate(points):
    prefix = '' if first is None else f'{first + number:03d},'
    for seed in [{'seed': seed} for seed in seeds] or [{}]:
      settings = {**point, **seed}
      name = _name(prefix, settings)
      if name in found:
        raise UserError(
          f'two runs would be kept in {name}; write their values apart in '
          'more than signs'
        )
      found[name] = Trial(name, json.loads(strict_json.dumps(settings)))
  return list(found.values())


def _name(prefix: str, settings: Mapping[str, Any]) -> str:
  """`width=256,learning_rate=0.001`; keys are whole where last words agree."""
  leaves = [key.rpartition('.')[2] for key in settings]
  parts = []
  for key, leaf in zip(settings, leaves, strict=True):
    label = leaf if leaves.count(leaf) == 1 else key
    text = re.sub(r'[^A-Za-z0-9._+-]+', '_', text_of(settings[key]))
    parts.append(f'{label}={text}')
  name = prefix + ','.join(parts)
  if len(name) > _LONGEST_NAME:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    name = f'{name[: _LONGEST_NAME - 9]}-{digest}'
  return name


# --- whether it holds --------------------------------------------------------


def check(
  spec: str, overrides: Sequence[str], trials: Iterable[Trial]
) -> Config:
  """Loads the config of every run; the first one.

  Raises:
    UserError: one does not hold; it is named.
  """
  first = None
  for trial in trials:
    try:
      cfg = config_lib.load_config(spec, [*overrides, *trial.overrides])
    except UserError as e:
      _check_alone(spec, overrides, str(e))
      what = ' '.join(trial.overrides)
      raise UserError(f'a run with {what} does not hold: {e}') from e
    first = first or cfg
  assert first is not None
  return first


def _check_alone(spec: str, overrides: Sequence[str], message: str) -> None:
  """Raises the error as it is where no run is to blame for it."""
  try:
    config_lib.load_config(spec, overrides)
  except UserError as e:
    if str(e) == message:
      raise


def samples(space: Sequence[Dimension], seed: int) -> list[Trial]:
  """Runs that stand for those of a search that are not known yet.

  The corners, as many as can be loaded in seconds, and random places.
  """
  points = list(itertools.islice(corners(space), _MOST_CHECKS))
  points += [draw(space, 1, seed + i)[0] for i in range(32)]
  return [Trial('', json.loads(strict_json.dumps(point))) for point in points]


def shared(cfg: Config, varied: Iterable[str]) -> dict[str, Any]:
  """The settings that identify the runs and are equal in all, as JSON."""
  left_out = set(varied)
  left_out |= {
    name for name, _, f in config_lib.settings() if f.metadata['free']
  }
  flat = config_lib.flatten(cfg)
  kept = {name: v for name, v in flat.items() if name not in left_out}
  return json.loads(strict_json.dumps(kept))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  """`train.steps: 20 -> 30` of the first few that differ, or nothing."""
  names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
  shown = [f'{n}: {old.get(n)!r} -> {new.get(n)!r}' for n in names[:_SHOWN]]
  return ', '.join(shown + ['...'] * (len(names) > _SHOWN))


def conflict(old: Plan, new: Plan) -> str:
  """Why `new` does not go on with `old`, or nothing.

  It goes on where every run of `old` is one of `new`, so runs may be added.
  """
  if old.search != new.search:
    return f'--search={old.search}, not {new.search}'
  if old.draw_seed != new.draw_seed and new.search != 'grid':
    return f'--draw-seed={old.draw_seed}, not {new.draw_seed}'
  if text := changes(old.settings, new.settings):
    return f'other settings ({text})'
  if new.search == 'bayes':
    if text := changes(old.space, new.space):
      return f'another --set ({text})'
    return (
      '' if old.metric == new.metric
      else f'--metric={old.metric}, not {new.metric}'
    )  # fmt: skip
  known = {trial.name: trial.settings for trial in new.trials}
  gone = [t.name for t in old.trials if known.get(t.name) != t.settings]
  if gone:
    return f'{len(gone)} run(s) that this one has not, such as {gone[0]}'
  return ''


def continued(old: Plan, new: Plan) -> Plan:
  """`new` with the runs of `old` where a search has decided on them."""
  if new.search != 'bayes':
    return new
  return dataclasses.replace(new, trials=old.trials)


# --- sweep.json --------------------------------------------------------------


def to_json(plan: Plan) -> str:
  """The plan as it is kept."""
  tree = {'format': _FORMAT} | dataclasses.asdict(plan)
  for trial in tree['trials']:
    if trial['pruned'] is None:
      del trial['pruned']
  return strict_json.dumps(tree, indent=2) + '\n'


def from_json(text: str | bytes) -> Plan:
  """Inverse of `to_json`.

  Raises:
    ValueError: it is not one.
  """
  try:
    tree = json.loads(text)
    if tree.pop('format') != _FORMAT:
      raise ValueError('of another version')
    trials = [Trial(**trial) for trial in tree.pop('trials')]
    return Plan(**tree, trials=trials)
  except (KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'not a plan: {e}') from e


def read(folder: files.AnyPath) -> Plan | None:
  """The plan of a folder; None where none was made.

  Raises:
    UserError: it is damaged, or the folder is a run or a file.
  """
  try:
    return from_json((folder / PLAN).read_bytes())
  except FileNotFoundError:
    pass
  except NotADirectoryError:
    raise UserError(f'{folder} is a file; give --workdir a folder') from None
  except ValueError as e:
    raise UserError(
      f'{folder / PLAN} is damaged ({e}); move it away, and the same command '
      'makes it again'
    ) from e
  if folder.exists() and not folder.is_dir():
    raise UserError(f'{folder} is a file; give --workdir a folder')
  if (folder / layout.CONFIG).exists():
    raise UserError(f'{folder} is a run; give --workdir another folder')
  return None


def write(folder: files.AnyPath, plan: Plan) -> None:
  """Keeps the plan, whole or not at all."""
  folder.mkdir(parents=True, exist_ok=True)
  files.write_atomic(folder / PLAN, to_json(plan))
