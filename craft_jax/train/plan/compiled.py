"""What a run needs on the devices at hand: compiled, and measured."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from craft_jax.config.settings import Config
from craft_jax.errors import RunFailed, UserError
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.model.sharding.rules import AXES
from craft_jax.runtime import host_memory as room_lib
from craft_jax.train import plan as plan_lib
from craft_jax.train.dispatch import Feed
from craft_jax.train.out_of_memory import program_bytes
from craft_jax.train.plan import Layout, Sketch, advice, memory, search
from craft_jax.train.plan.model import mesh_is_set
from craft_jax.train.plan.search import Bound, Option
from craft_jax.train.plan.text import amount
from craft_jax.train.run import open_setup
from craft_jax.train.setup import Setup


class Compiled(NamedTuple):
  """A run's program of many steps, as compiled for the devices at hand.

  Attributes:
    layout: devices of each axis.
    sketch: the run.
    state: bytes on a device, by part: params, opt_state, ema, counts.
    data: bytes on a device of the other arguments: the corpus, mostly.
    temporaries: bytes on a device that a step takes beside its arguments.
    planned: bytes on a device that the plan says it takes.
    left: bytes that a device can give, the state not yet there; None if
      nothing tells.
    limit: what sets that, in words.
    seconds: of the compilation.
    program: to be called.
  """

  layout: Layout
  sketch: Sketch
  state: dict[str, int]
  data: int
  temporaries: int
  planned: float
  left: float | None
  limit: str
  seconds: float
  program: Any

  @property
  def together(self) -> int:
    """Bytes on a device at the height of a step."""
    return sum(self.state.values()) + self.data + self.temporaries

  @property
  def fits(self) -> bool:
    """Whether a device can give that, where something tells."""
    return not self.left or self.together + self.unseen <= self.left

  @property
  def unseen(self) -> float:
    """Bytes on a device that no buffer accounts for."""
    return memory.UNSEEN if jax.local_devices()[0].platform == 'cpu' else 0

  @property
  def expected_peak(self) -> float:
    """Bytes that the steps add on all devices of this process."""
    return (self.temporaries + self.unseen) * jax.local_device_count()

  @property
  def correction(self) -> float:
    """Temporaries over what the plan says of them."""
    return self.temporaries / self.planned


class Measured(NamedTuple):
  """Some steps and a save.

  Attributes:
    seconds_per_step: the first left out.
    chars_per_second: of training text.
    peak: bytes of all devices of this process above what there was before the
      first step; None if nothing tells.
    checkpoint_bytes: on disk.
    checkpoint_seconds: from the call until it is checked and whole.
  """

  seconds_per_step: float
  chars_per_second: float
  peak: int | None
  checkpoint_bytes: int
  checkpoint_seconds: float


class AtHand(NamedTuple):
  """What a run needs on the devices at hand.

  Attributes:
    cfg: the run, its precision decided.
    kind: JAX's name of a device.
    compiled: for each mesh that was tried, the first being the run's own, or
      what is wrong with it.
    measured: on the first, if asked for.
    options: what fits on the first.
  """

  cfg: Config
  kind: str
  compiled: list[Compiled | str]
  measured: Measured | None
  options: list[Option]


def at_hand(cfg: Config, steps: int, limit: int = 0) -> AtHand:
  """Compiles a run for the devices at hand, and measures it.

  Args:
    cfg: the run.
    steps: to do on the first mesh; 0 measures nothing.
    limit: bytes of each device; 0 is what it can give.

  Raises:
    UserError: see `open_setup`.
    RunFailed: a step was not finite.
  """
  first: Compiled
  done: Measured | None = None
  if steps:
    first, done, cfg = measured(cfg, steps)
  else:
    first, cfg = compiled(cfg)
  found: list[Compiled | str] = [first]
  for other in _other_meshes(cfg, first.layout):
    try:
      found.append(compiled(other)[0])
    except UserError as e:
      found.append(str(e))
  if limit:
    found = [
      c if isinstance(c, str) else c._replace(left=limit, limit='--memory')
      for c in found
    ]
    first = first._replace(left=limit)
  options = []
  if first.left:
    bound = Bound(first.left, jax.devices()[0].platform, first.correction)
    options = search.options(first.sketch, first.layout, bound)
  return AtHand(cfg, jax.devices()[0].device_kind, found, done, options)


def fitted(cfg: Config) -> AtHand:
  """Compiles a run with ever more micro-batches until its step fits here.

  The batch, its data and the loss, to rounding, stay what they are.

  Args:
    cfg: the run; `train.accumulate` is the least that is tried.

  Returns:
    What was compiled last; its `cfg.train.accumulate` is the one that fits.

  Raises:
    UserError: none does; says what would. Or see `open_setup`.
  """
  while True:
    found, decided = compiled(cfg)
    device = jax.devices()[0]
    if found.fits:
      return AtHand(decided, device.device_kind, [found], None, [])
    assert found.left
    left = found.left - found.unseen
    bound = Bound(left, device.platform, found.correction)
    smaller, *_ = search.options(found.sketch, found.layout, bound, True)
    if not smaller.accumulate:
      raise UserError(
        f'no train.accumulate makes this run fit: {found.limit} leaves '
        f'{amount(found.left)} on each device; '
        + advice.suggestion(found.sketch, found.layout, bound)
      )
    train = dataclasses.replace(cfg.train, accumulate=smaller.accumulate)
    cfg = dataclasses.replace(cfg, train=train)


def _other_meshes(cfg: Config, layout: Layout) -> Iterator[Config]:
  """All devices on each other axis, for a config that sets no mesh."""
  if layout.devices == 1 or mesh_is_set(cfg):
    return
  for axis in AXES:
    sizes = {n: layout.devices if n == axis else 1 for n in AXES}
    if Layout(**sizes) != layout:
      mesh = dataclasses.replace(cfg.mesh, **sizes)
      yield dataclasses.replace(cfg, mesh=mesh)


def compiled(cfg: Config) -> tuple[Compiled, Config]:
  """Compiles a run's program; allocates its corpus and nothing of its state.

  Returns:
    What it needs, and the config with its precision decided.

  Raises:
    UserError: see `open_setup`.
  """
  with _opened(cfg) as (setup, feed):
    return _compiled(setup, feed), setup.cfg


def measured(cfg: Config, steps: int) -> tuple[Compiled, Measured, Config]:
  """Compiles a run's program, does some steps with it and saves the state.

  Nothing of it is kept. Returns the config with its precision decided, too.

  Args:
    cfg: the run.
    steps: to do, after one that warms up.

  Raises:
    UserError: see `open_setup`.
    RunFailed: a step was not finite, so that the rest was not done.
  """
  with _opened(cfg) as (setup, feed):
    found = _compiled(setup, feed)
    state = setup.first_state()
    jax.block_until_ready(state)
    before = _reset_peak()
    seconds = []
    for _ in range(steps + 1):
      inputs = setup.inputs(feed, 1)
      begin = time.perf_counter()
      state, *rows = found.program(state, *inputs)
      mesh_lib.fetched(rows)
      seconds.append(time.perf_counter() - begin)
    peak = _peak_since(before)
    if int(state.step) != steps + 1:
      raise RunFailed('a step was not finite; use a lower optim.learning_rate')
    begin = time.perf_counter()
    setup.checkpointer.save(state, setup.meta(steps + 1, {}, 0))
    setup.checkpointer.wait()
    saving = time.perf_counter() - begin
    files = pathlib.Path(setup.run_dir.path, 'checkpoints').rglob('*')
    per_step = float(np.median(seconds[1:]))
    train = setup.corpus.train
    tokens = cfg.train.batch_size * cfg.model.context
    chars = tokens * train.num_chars / len(train.tokens)
    size = sum(file.stat().st_size for file in files if file.is_file())
    done = Measured(per_step, chars / per_step, peak, size, saving)
    return found, done, setup.cfg


@contextlib.contextmanager
def _opened(cfg: Config):
  """A run in a folder of its own that goes when it is done with."""
  with tempfile.TemporaryDirectory() as folder:
    train = dataclasses.replace(cfg.train, check_memory=False)
    setup = open_setup(dataclasses.replace(cfg, train=train), f'{folder}/run')
    with setup.closing, contextlib.closing(setup.open_feed(0)) as feed:
      yield setup, feed


def _compiled(setup: Setup, feed: Feed) -> Compiled:
  left, state = room_lib.room(), setup.abstract_state
  inputs = setup.inputs(feed, 1)
  begin = time.perf_counter()
  program = setup.compile(feed, state, inputs)
  seconds = time.perf_counter() - begin
  needed = program_bytes(program)
  if needed is None:
    raise UserError('this backend does not say what a program needs')
  layout = Layout(**setup.mesh.shape)
  sketch = plan_lib.sketch(setup.cfg, setup.corpus.vocabulary.size)
  used = memory.memory(sketch, layout, jax.devices()[0].platform)
  parts = {p: sketch.bytes(p, layout) for p in memory.STATE}
  arguments = program.memory_analysis().argument_size_in_bytes
  return Compiled(
    layout=layout,
    sketch=sketch,
    state=parts,
    data=max(0, arguments - sum(parts.values())),
    temporaries=needed,
    planned=used.total - used.state,
    left=left and left.bytes,
    limit=left.source if left else '',
    seconds=seconds,
    program=program,
  )


def _reset_peak() -> int | None:
  """Bytes of this process now, its peak forgotten; of a CPU on Linux.

  Devices of other kinds keep one peak: what they hold now.
  """
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    return (device.memory_stats() or {}).get('bytes_in_use')
  return room_lib.reset_peak()


def _peak_since(before: int | None) -> int | None:
  """What was added to `before` at most."""
  device = jax.local_devices()[0]
  if before is None:
    return None
  if device.platform != 'cpu':
    peak = (device.memory_stats() or {}).get('peak_bytes_in_use')
  else:
    peak = room_lib.peak()
  return None if peak is None else peak - before
