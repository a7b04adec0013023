"""Runs some steps of a run's own program and records a trace."""

import contextlib
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from craft_jax.config.settings import Config
from craft_jax.errors import RunFailed
from craft_jax.inference.metrics import peak_flops
from craft_jax.model.precision import Policy, einsum
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.train.dispatch import Feed
from craft_jax.train.plan.devices import DEVICES
from craft_jax.train.profile import hlo
from craft_jax.train.profile import trace as trace_lib
from craft_jax.train.profile.bottleneck import Ceilings, Recording
from craft_jax.train.profile.timeline import profile
from craft_jax.train.run import open_setup
from craft_jax.train.setup import Setup

_COMPILED = '/jax/core/compile/backend_compile_duration'
# Bounds on timing without a trace, of which the median is used.
_PLAIN_ROUNDS, _PLAIN_SECONDS = 5, 5.0
# Sizes for measuring a device whose data sheet is not known.
_WIDTH, _STREAMED, _ROUNDS = 1024, 1 << 24, 5


def record(cfg: Config, folder: pathlib.Path, steps: int) -> Recording:
  """Profiles the training program of a config.

  Keeps only the trace and the HLO text of the program (`program.txt`).

  Args:
    cfg: run settings.
    folder: folder for the trace, which is created.
    steps: number of steps to trace, after as many for warm-up.

  Raises:
    UserError: settings or text are invalid.
    RunFailed: a step was bad, so that the remaining ones were not run.
  """
  with tempfile.TemporaryDirectory() as workdir:
    setup = open_setup(cfg, f'{workdir}/run')
    with setup.closing, contextlib.closing(setup.open_feed(0)) as feed:
      return _record(_Runner(setup, feed, steps), folder, steps)


class _Runner:
  """Dispatches steps like the training loop, one dispatch ahead."""

  def __init__(self, setup: Setup, feed: Feed, steps: int):
    self.setup, self.feed = setup, feed
    self.state = setup.first_state()
    # If the loop would choose the number itself, use a single dispatch.
    per_call = setup.cfg.train.steps_per_call or steps
    self.steps_per_call = min(per_call, steps, self.feed.max_steps)
    begin = time.perf_counter()
    inputs = setup.inputs(feed, self.steps_per_call)
    self.program = setup.compile(feed, self.state, inputs)
    self._dispatch(inputs)  # warm-up, with the batches just read
    jax.block_until_ready(self.state)
    self.compile_seconds = time.perf_counter() - begin

  def run(self, steps: int) -> float:
    """Runs `steps` steps and returns the seconds they took."""
    before, waiting = int(self.state.step), None
    begin = time.perf_counter()
    left = steps
    while left:
      count = min(self.steps_per_call, left)
      rows = self._dispatch(self.setup.inputs(self.feed, count))
      if waiting is not None:
        jax.device_get(waiting)
      waiting, left = rows, left - count
    # Metrics are fetched from the first device; others may still be running.
    jax.block_until_ready(self.state)
    seconds = time.perf_counter() - begin
    if int(self.state.step) - before != steps:
      raise RunFailed(
        'a step was not finite, or a spike, so that those after it were not '
        'run; use another optim.learning_rate or model.precision'
      )
    return seconds

  def _dispatch(self, inputs: tuple[Any, ...]) -> Any:
    self.state, *rows = self.program(self.state, *inputs)
    return rows


def _record(runner: _Runner, folder: pathlib.Path, steps: int) -> Recording:
  setup = runner.setup
  plain: list[float] = []
  while len(plain) < _PLAIN_ROUNDS and sum(plain) < _PLAIN_SECONDS:
    plain.append(runner.run(steps))
  waited, compiled = runner.feed.wait_seconds, []

  def listen(event: str, duration_secs: float, **_: Any) -> None:
    if event == _COMPILED:
      compiled.append(duration_secs)

  folder.mkdir(parents=True, exist_ok=True)
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  options.host_tracer_level = 1
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    with jax.profiler.trace(str(folder), profiler_options=options):
      runner.run(steps)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  waited = runner.feed.wait_seconds - waited
  text = runner.program.as_text()
  (folder / 'program.txt').write_text(text, encoding='utf-8')
  found = profile(trace_lib.read(folder), hlo.Program(text), steps)
  cfg, device = setup.cfg, jax.devices()[0]
  tokens = cfg.train.batch_size * cfg.model.context
  per_token = setup.model.flops_per_token(cfg.model.context)
  return Recording(
    profile=found,
    plain_seconds=statistics.median(plain) / steps,
    calls=math.ceil(steps / runner.steps_per_call),
    compile_seconds=runner.compile_seconds,
    recompiled=len(compiled),
    wait_seconds=waited / steps,
    memory=_memory(runner.program),
    tokens=tokens,
    flops=tokens * per_token,
    ceilings=_ceilings(setup.mesh, setup.model.policy),
    precision=setup.model.policy.precision,
    mesh=dict(setup.mesh.shape),
    device=device.device_kind,
    platform=device.platform,
    steps_per_call=runner.steps_per_call,
    folder=folder,
  )


def _memory(program: Any) -> dict[str, int]:
  """Bytes of the program's buffers on a device; {} if unknown."""
  found = program.memory_analysis()
  if found is None:
    return {}
  return {
    'arguments': found.argument_size_in_bytes,
    'outputs': found.output_size_in_bytes,
    'aliased': found.alias_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'code': found.generated_code_size_in_bytes,
  }


# --- ceilings ----------------------------------------------------------------


def _ceilings(mesh: Mesh, policy: Policy) -> Ceilings:
  """Roofline of a device, from its data sheet if known, else measured."""
  device = jax.devices()[0]
  peak, source = peak_flops(device.device_kind, device.platform)
  known = [
    d.memory_bandwidth for d in DEVICES.values() if d.kind == device.device_kind
  ]
  if peak and known and policy.precision == 'bfloat16':
    return Ceilings(peak, known[0], source)
  flops, bandwidth = _measured(mesh, policy)
  return Ceilings(
    flops,
    bandwidth,
    f'measured here: {_WIDTH} x {_WIDTH} products in {policy.precision}, '
    f'sums of arrays of {4 * _STREAMED >> 20} MiB, on all devices at once',
  )


def _measured(mesh: Mesh, policy: Policy) -> tuple[float, float]:
  """Measures FLOP/s and bytes/s of one device while all of them are busy."""
  count = mesh.size
  each = NamedSharding(mesh, PartitionSpec(mesh_lib.AXES))
  a_NDD = jax.device_put(jnp.ones((count, _WIDTH, _WIDTH)), each)
  x_NF = jax.device_put(jnp.ones((count, _STREAMED)), each)

  def product(a_NDD):
    return einsum('NDE,NEF->NDF', a_NDD, a_NDD, policy)

  def add(x_NF, y_NF):
    return x_NF + y_NF

  multiply = jax.jit(product, out_shardings=each)
  # Donated, because touching new pages costs more than writing to old ones.
  stream = jax.jit(add, out_shardings=each, donate_argnums=1)
  seconds = _least_seconds(lambda _: multiply(a_NDD), None)
  streaming = _least_seconds(lambda y_NF: stream(x_NF, y_NF), x_NF + 1)
  # Two arrays are read and one is written.
  return 2 * _WIDTH**3 / seconds, 3 * 4 * _STREAMED / streaming


def _least_seconds(function: Callable[[Any], Any], value: Any) -> float:
  """Shortest time of several calls, each applied to the previous result."""
  times = []
  for _ in range(_ROUNDS + 1):
    begin = time.perf_counter()
    value = jax.block_until_ready(function(value))
    times.append(time.perf_counter() - begin)
  return min(times)
