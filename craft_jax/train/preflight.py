"""Everything that would stop a run, found without training: `config check`.

The checks are those of set-up, which raises the first problem; here all of them
are collected. The text is prepared as training would, and kept for it.
"""

import dataclasses
import functools
import os
import pathlib
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from craft_jax.config import load as config_lib
from craft_jax.config.load import Resolved
from craft_jax.config.settings import Config
from craft_jax.data import sources
from craft_jax.data.corpus import Corpus
from craft_jax.data.prepare import open_corpus
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.model.precision import platform_of
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import exports, run_dir
from craft_jax.runs.lock import is_held
from craft_jax.runtime import files
from craft_jax.runtime.host_memory import Room, room
from craft_jax.train import checks, plan
from craft_jax.train.plan import advice
from craft_jax.train.plan.memory import USABLE, memory
from craft_jax.train.plan.text import amount
from craft_jax.train.run import last_save

OK, PROBLEM, SKIPPED = 'ok', 'problem', 'not checked'


class Row(NamedTuple):
  """One check.

  Attributes:
    check: what was looked at.
    status: `ok`, `problem` or `not checked`.
    detail: what was found; of a problem, the remedy too.
  """

  check: str
  status: str
  detail: str


@dataclasses.dataclass(frozen=True)
class Machine:
  """Where a run is to go; by default here.

  Attributes:
    device: a name that `plan.find_device` knows, or ''.
    devices: how many; 0 is as many as there are here, or one.
  """

  device: str = ''
  devices: int = 0


def preflight(found: Resolved, workdir: str, machine: Machine) -> Iterator[Row]:
  """Checks settings, text, devices, memory and folders.

  Sets the number of CPU devices, so it must come before anything that touches
  a JAX backend.

  Args:
    found: the settings, with what is wrong with them.
    workdir: where the run would be kept.
    machine: where it would run.
  """
  cfg = found.cfg
  yield from _settings(found)
  yield from _of('writers', lambda: _writers(cfg))
  corpus = vocabulary = None
  if _touches(found, ('text.', 'data.')):
    yield Row('text', SKIPPED, 'mend the settings of text and data first')
  else:
    try:
      corpus = open_corpus(cfg)
    except UserError as e:
      yield Row('text', PROBLEM, str(e))
    else:
      vocabulary = corpus.vocabulary
      yield from _text(corpus)
      for name, check in checks.OF_CORPUS.items():
        yield from _of(name, functools.partial(check, cfg, corpus))
  state = 0.0
  if _touches(found, ('model.', 'train.', 'optim.', 'mesh.')):
    yield Row('devices', SKIPPED, 'mend the settings of the model first')
  else:
    try:
      name, sketch, layout = _devices(cfg, vocabulary, machine)
    except UserError as e:
      yield Row('devices', PROBLEM, str(e))
      yield Row('memory', SKIPPED, 'mend the mesh first')
    else:
      state = sketch.state_bytes
      yield Row('devices', OK, f'{name}, mesh {layout}')
      yield from _of('memory', lambda: _memory(sketch, layout, machine))
  yield from _of('run directory', lambda: _workdir(cfg, workdir, corpus))
  yield from _of('disk', lambda: _disk(cfg, workdir, state))


def _of(check: str, look: Callable[[], str]) -> Iterator[Row]:
  """A row of what a function says, or of the mistake that it raises."""
  try:
    yield Row(check, OK, look())
  except UserError as e:
    yield Row(check, PROBLEM, str(e))


def _settings(found: Resolved) -> Iterator[Row]:
  for problem in found.problems:
    yield Row('settings', PROBLEM, problem)
  if not found.problems:
    origins = found.origins.values()
    given = sum(not origin.startswith('default') for origin in origins)
    yield Row(
      'settings',
      OK,
      f'{len(found.origins)}, of which the file and flags set {given}; none '
      'clash',
    )


def _touches(found: Resolved, sections: tuple[str, ...]) -> bool:
  """Whether a problem of the settings is in one of these sections."""
  return any(s in problem for problem in found.problems for s in sections)


def _writers(cfg: Config) -> str:
  exports.check_installed(cfg)
  return ', '.join(('metrics.jsonl', *cfg.log.writers))


def _text(corpus: Corpus) -> Iterator[Row]:
  size = sum(split.num_bytes for split in corpus.splits)
  parts = [
    f'{amount(size)} in {corpus.documents:,} document(s)'
    if corpus.pairs is None
    else f'{corpus.documents:,} pairs with {amount(size)} of completions',
    *corpus.notes,
    *corpus.warnings,
    *([f'no bits per byte: {corpus.withheld}'] if corpus.withheld else []),
  ]
  kind = f'{corpus.vocabulary.kind}, {corpus.vocabulary.size} tokens'
  yield Row('text', OK, '; '.join(parts))
  yield Row('vocabulary', OK, f'{kind} with the specials')


def _devices(
  cfg: Config, vocabulary: Vocabulary | None, machine: Machine
) -> tuple[str, plan.Sketch, plan.Layout]:
  """The devices in words, the run on them, and their mesh.

  Raises:
    UserError: the mesh, the batch or the model does not divide.
  """
  count, name = machine.devices or 1, machine.device
  if not name:  # as training decides it, on these devices
    mesh_lib.set_cpu_devices(machine.devices or mesh_lib.cpu_devices(cfg))
    count = machine.devices or jax.device_count()
    name = jax.devices()[0].device_kind
    cfg = checks.with_precision(cfg, platform_of(jax.devices()[0]))
  layout = plan.Layout(**config_lib.check_devices(cfg, count))
  sketch = plan.sketch(cfg, vocabulary.size if vocabulary else 0)
  sketch.check(layout)
  return f'{count} x {name}', sketch, layout


def _memory(sketch: plan.Sketch, layout: plan.Layout, machine: Machine) -> str:
  """What training would say at its start, of these devices or of named ones."""
  if machine.device:
    device = plan.find_device(machine.device)
    left: Room | None = Room(USABLE * device.memory, machine.device)
    platform = device.platform
  else:
    left, platform = room(), jax.devices()[0].platform
  needed = memory(sketch, layout, platform).total
  text = f'a step needs about {amount(needed)} on each device'
  if left is None:
    return f'{text}; nothing tells what is free'
  found = f'{text}, {left.source} leaves {amount(left.bytes)}'
  if not sketch.cfg.train.check_memory:
    return f'{found}; not compared (train.check_memory=false)'
  advice.refuse(sketch, layout, left, platform)
  if needed > left.bytes:
    return f'{found}; in doubt, so training would try'
  return found


def _workdir(cfg: Config, workdir: str, corpus: Corpus | None) -> str:
  """Whether the folder can be made or continued, and written."""
  if files.is_remote(workdir):
    return f'{workdir} is in an object store, which is not asked'
  run_dir.check_ours(workdir)
  if is_held(pathlib.Path(workdir)):
    raise UserError(f'the run in {workdir} is going on; give another --workdir')
  last = last_save(workdir)
  if last:
    checks.continued(cfg, last, workdir)
    if corpus:
      checks.check_same_text(corpus, last, workdir)
  _check_writable(workdir, 'give another --workdir')
  if last:
    return f'{workdir} would go on from step {last.step}'
  return f'{workdir} can be made'


def _check_writable(path: str | os.PathLike[str], remedy: str) -> None:
  folder = files.nearest_folder(path)
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as e:
    raise UserError(
      f'{folder} cannot be written ({e.strerror or e}); {remedy}'
    ) from e


def _disk(cfg: Config, workdir: str, state: float) -> str:
  """Room for the checkpoints, and a cache of the text that can be written."""
  if files.is_remote(workdir):
    return f'{workdir} is in an object store, which is not asked'
  cache = sources.cache_folder(cfg.data)
  _check_writable(cache, 'set --config.data.cache_dir=DIR')
  if not state:
    free = advice.disk_free(workdir)
    return f'{amount(free or 0)} free'
  return advice.disk_need(cfg, workdir, state)


def table(rows: Iterable[Row], width: int = 79) -> list[str]:
  """The rows for people."""
  found = []
  for row in rows:
    head = f'{row.check:<14}{row.status:<12}'
    found += textwrap.wrap(
      row.detail,
      width,
      initial_indent=head,
      subsequent_indent=' ' * len(head),
      break_long_words=False,
      break_on_hyphens=False,
    )
  return found


def as_dict(rows: Iterable[Row]) -> dict[str, Any]:
  """The rows for programs."""
  rows = list(rows)
  return {
    'ok': all(row.status != PROBLEM for row in rows),
    'checks': [row._asdict() for row in rows],
  }
