"""Everything that would stop a run, found without training: `config check`.

What `craft train` refuses one at a time is asked here all at once, with its
own functions. The text is prepared as training would, and kept for it.
"""

import dataclasses
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
from craft_jax.data.index import check_samples
from craft_jax.data.prepare import open_corpus
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.model.precision import platform_of, resolve_precision
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint, exports, run_dir
from craft_jax.runs.checkpoint import reader
from craft_jax.runs.lock import is_held
from craft_jax.runtime import files
from craft_jax.runtime.host_memory import Room, room
from craft_jax.train import plan
from craft_jax.train.plan import advice
from craft_jax.train.plan.memory import USABLE, memory
from craft_jax.train.plan.text import amount
from craft_jax.train.resume import resumed

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
  vocabulary = None
  if _touches(found, ('text.', 'data.')):
    yield Row('text', SKIPPED, 'mend the settings of text and data first')
  else:
    corpus, rows = _text(cfg)
    yield from rows
    if corpus is not None:
      vocabulary = corpus.vocabulary
      yield from _splits(cfg, corpus)
  if _touches(found, ('model.', 'train.', 'optim.', 'mesh.')):
    yield Row('devices', SKIPPED, 'mend the settings of the model first')
    state = 0.0
  else:
    state, rows = _devices(cfg, vocabulary, machine)
    yield from rows
  yield from _of('run directory', lambda: _workdir(cfg, workdir))
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


def _text(cfg: Config) -> tuple[Corpus | None, list[Row]]:
  try:
    corpus = open_corpus(cfg)
  except UserError as e:
    return None, [Row('text', PROBLEM, str(e))]
  size = sum(split.num_bytes for split in corpus.splits)
  parts = [
    f'{amount(size)} in {corpus.documents:,} document(s)',
    *corpus.notes,
    *([f'no bits per byte: {corpus.withheld}'] if corpus.withheld else []),
  ]
  kind = f'{corpus.vocabulary.kind}, {corpus.vocabulary.size} tokens'
  return corpus, [
    Row('text', OK, '; '.join(parts)),
    Row('vocabulary', OK, f'{kind} with the specials'),
  ]


def _splits(cfg: Config, corpus: Corpus) -> Iterator[Row]:
  sizes = {split.name: len(split.tokens) for split in corpus.splits}
  short = list(config_lib.short_splits(cfg, sizes))
  for problem in short:
    yield Row('splits', PROBLEM, problem)
  if not short:
    text = ', '.join(f'{name} {size:,}' for name, size in sizes.items())
    yield Row('splits', OK, f'{text} tokens')
  yield from _of('steps', lambda: _steps(cfg, sizes['train']))
  yield from _of('sample prompt', lambda: _prompt(cfg, corpus.vocabulary))


def _steps(cfg: Config, num_tokens: int) -> str:
  t, context = cfg.train, cfg.model.context
  check_samples(t.steps, t.batch_size, num_tokens, context)
  read = t.steps * t.batch_size * context
  return (
    f'{t.steps:,} of {t.batch_size} x {context} tokens read the training '
    f'text {read / num_tokens:.3g} times'
  )


def _prompt(cfg: Config, vocabulary: Vocabulary) -> str:
  try:
    vocabulary.encode(cfg.log.sample_prompt)
  except UserError as e:
    raise UserError(f'log.sample_prompt: {e}') from e
  return 'the vocabulary has its characters'


def _devices(
  cfg: Config, vocabulary: Vocabulary | None, machine: Machine
) -> tuple[float, list[Row]]:
  """Bytes of the whole state, or 0; and the rows of devices and memory."""
  if machine.device:
    count = machine.devices or 1
    name = f'{count} x {machine.device}'
  else:
    mesh_lib.set_cpu_devices(machine.devices or mesh_lib.cpu_devices(cfg))
    count = machine.devices or jax.device_count()
    name = f'{count} x {jax.devices()[0].device_kind}'
  problems: list[str] = []
  layout = _layout(cfg, count, problems)
  if layout is None:
    return 0.0, [
      *(Row('devices', PROBLEM, problem) for problem in problems),
      Row('memory', SKIPPED, 'mend the mesh first'),
    ]
  rows = [Row('devices', PROBLEM, problem) for problem in problems]
  if not problems:
    rows.append(Row('devices', OK, f'{name}, mesh {layout}'))
  if not machine.device:  # as training decides it, on these devices
    precision = resolve_precision(
      cfg.model.precision, platform_of(jax.devices()[0])
    )
    model = dataclasses.replace(cfg.model, precision=precision)
    cfg = dataclasses.replace(cfg, model=model)
  sketch = plan.sketch(cfg, vocabulary.size if vocabulary else 0)
  if problem := sketch.problem(layout):
    if not problems:
      rows = [Row('devices', PROBLEM, problem)]
    return 0.0, [*rows, Row('memory', SKIPPED, 'mend the mesh first')]
  rows += _of('memory', lambda: _memory(sketch, layout, machine))
  return sketch.state_bytes, rows


def _layout(cfg: Config, count: int, problems: list[str]) -> plan.Layout | None:
  """The mesh, or None; adds what is wrong with it."""
  try:
    sizes = config_lib.mesh_sizes(cfg, count)
  except UserError as e:
    problems.append(str(e))
    return None
  problems += config_lib.undivided_batches(cfg, sizes['data'] * sizes['fsdp'])
  return plan.Layout(**sizes)


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


def _workdir(cfg: Config, workdir: str) -> str:
  """Whether the folder can be made or continued, and written."""
  if files.is_remote(workdir):
    return f'{workdir} is in an object store, which is not asked'
  run_dir.check_ours(workdir)
  if is_held(pathlib.Path(workdir)):
    raise UserError(f'the run in {workdir} is going on; give another --workdir')
  steps = checkpoint.steps(workdir)
  if steps:
    last = checkpoint.resolve_step(workdir)
    old = reader.open_meta(workdir, last).config
    # Decided by the hardware when the run began.
    if cfg.model.precision == 'auto':
      model = dataclasses.replace(cfg.model, precision=old.model.precision)
      cfg = dataclasses.replace(cfg, model=model)
    resumed(old, cfg, last, workdir)
  _check_writable(workdir, 'give another --workdir')
  if steps:
    return f'{workdir} would go on from step {last}'
  return f'{workdir} can be made'


def _check_writable(path: str | os.PathLike[str], remedy: str) -> None:
  folder = _existing(path)
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as e:
    raise UserError(
      f'{folder} cannot be written ({e.strerror or e}); {remedy}'
    ) from e


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
  """The folder, or the nearest above it that there is."""
  folder = pathlib.Path(path).expanduser().absolute()
  while not folder.exists():
    folder = folder.parent
  return folder


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
