"""Whether a run fits its devices and its disk, and what would make it fit."""

import dataclasses
import shutil
from collections.abc import Mapping

import jax
from etils import epath

from craft_jax.config.settings import Config
from craft_jax.errors import OutOfMemory, RunFailed, UserError
from craft_jax.model.protocol import Model, param_count
from craft_jax.runs import checkpoint
from craft_jax.runs.checkpoint import retention
from craft_jax.runtime import files, keys
from craft_jax.runtime.host_memory import Room, room
from craft_jax.train.plan import search as search_lib
from craft_jax.train.plan.memory import Memory, memory, rows_per_device
from craft_jax.train.plan.model import Layout, Sketch, sketch
from craft_jax.train.plan.search import Bound
from craft_jax.train.plan.text import amount

# Of an estimate that is not of the state, what was measured at least
# (docs/memory.md). Only what needs more than there is even so is refused.
LEAST = 0.6
# Of what a run that failed needs by the plan, what a suggestion needs: at most,
# and what is tried however little is left.
_FILLED, _HALF = 0.9, 0.6
_ANYWAY = '--config.train.check_memory=false goes on all the same'


# --- before ------------------------------------------------------------------


def check_start(
  cfg: Config,
  model: Model,
  mesh_shape: Mapping[str, int],
  workdir: epath.PathLike,
) -> None:
  """Refuses a run that its devices or its disk cannot hold, by arithmetic.

  The state is traced only where a bound by the number of parameters says that
  it could be too large. What is in doubt is let through.

  Args:
    cfg: the run, `model.precision` decided.
    model: of the run.
    mesh_shape: devices of each axis.
    workdir: where its checkpoints will be.

  Raises:
    UserError: it does not fit even with the least share of the estimate that
      was ever measured, or there is no room for its checkpoints.
  """
  layout = Layout(**mesh_shape)
  params = param_count(jax.eval_shape(model.init, keys.from_seed(0)))
  # Parameters, two moments, an average, two gradients, updates and a copy.
  state, rows = 8 * 4 * params, rows_per_device(cfg, layout)
  needed = state + sum(model.activation_bytes(rows, cfg.model.context))
  left = room() if cfg.train.check_memory else None
  free, most = disk_free(workdir), retention.most(cfg.checkpoint)
  fits = left is None or needed < left.bytes
  if fits and (free is None or state * most < free):
    return
  run = sketch(cfg, model.vocabulary_size)
  if left is not None:
    refuse(run, layout, left, jax.devices()[0].platform)
  if free is not None:
    disk_need(cfg, workdir, run.state_bytes)


def disk_free(workdir: epath.PathLike) -> int | None:
  """Bytes free where a run directory is or would be; None if not asked."""
  if files.is_remote(workdir):
    return None
  return shutil.disk_usage(files.nearest_folder(workdir)).free


def disk_need(cfg: Config, workdir: epath.PathLike, state_bytes: float) -> str:
  """What the checkpoints of a run need and what the disk has, in words.

  Those that are there already need no more room.

  Raises:
    UserError: they do not fit.
  """
  most = retention.most(cfg.checkpoint)
  there = min(len(checkpoint.steps(workdir)), most - 1)
  needed, free = state_bytes * (most - there), disk_free(workdir)
  assert free is not None, 'a local folder'
  text = (
    f'{most - there} checkpoint{"s" * (most - there > 1)} of '
    f'{amount(state_bytes)} need '
    f'{amount(needed)} of {amount(free)} free'
  )
  if needed > free:
    raise UserError(
      f'{text}; give a --workdir on another disk, free space, or lower '
      'checkpoint.keep'
    )
  return text


def refuse(run: Sketch, layout: Layout, left: Room, platform: str) -> Memory:
  """Refuses a run whose least need is more than there is; else its plan.

  Args:
    run: what is asked about.
    layout: sizes of the mesh axes; divides the model.
    left: what each device can give.
    platform: JAX's name of the devices.

  Raises:
    UserError: even with the least share of the estimate that was ever measured.
  """
  used = memory(run, layout, platform)
  if used.state + LEAST * (used.total - used.state) <= left.bytes:
    return used
  raise UserError(
    f'this run needs about {amount(used.total)} on each of {layout.devices} '
    f'device(s), and {left.source} leaves {amount(left.bytes)}; '
    f'{suggestion(run, layout, Bound(left.bytes, platform))}; {_ANYWAY}'
  )


# --- after -------------------------------------------------------------------


def explained(error: OutOfMemory, cfg: Config) -> tuple[Exception, str]:
  """What to tell people of a run that was short of memory.

  Args:
    error: its facts.
    cfg: the run.

  Returns:
    An error of one line with what to try; and several lines with the plan of a
    step, '' of a compiled program that was refused.
  """
  facts = error.facts
  model = dataclasses.replace(cfg.model, precision=facts['precision'])
  cfg = dataclasses.replace(cfg, model=model)
  layout, run = Layout(**facts['mesh']), sketch(cfg, facts['vocabulary_size'])
  doing, asked, platform = facts['doing'], facts['bytes'], facts['platform']
  used = memory(run, layout, platform)
  left = Room(facts['available'] or 0.0, facts['limit'] or 'the memory')
  if facts['compiled']:
    correction = asked / (used.total - used.state)
    bound = Bound(left.bytes + used.state, platform, correction)
    refusal = UserError(
      f'a step needs {amount(asked)} more on each of {layout.devices} CPU '
      f'device(s), as it is compiled, and {left.source} leaves '
      f'{amount(left.bytes)}; {suggestion(run, layout, bound)}; {_ANYWAY}'
    )
    return refusal, ''
  what = f'{amount(asked)} were asked for' if asked else 'no size was given'
  if doing == 'evaluating':
    advice = _smaller_evaluation(cfg, layout)
  else:
    # What is left now says little: other devices hold their buffers still. The
    # run has to become smaller, and half is what is tried first.
    limit = min(left.bytes + used.state, _FILLED * used.total)
    bound = Bound(max(limit, _HALF * used.total), platform)
    advice = suggestion(run, layout, bound, smaller=True)
  report = '\n'.join(
    [
      f'out of memory while {doing}: {what} at once on a device, and '
      f'{left.source} leaves {amount(left.bytes)} now',
      f'the plan of a step, on each of {layout.devices} device(s)',
      *_rows(used),
      advice,
    ]
  )
  by_itself = ''
  if doing == 'training':
    by_itself = ', or --auto-batch, which asks the compiler what fits'
  failure = RunFailed(
    f'out of memory while {doing} ({what}); {advice}{by_itself}; what is saved '
    'is whole'
  )
  return failure, report


def _smaller_evaluation(cfg: Config, layout: Layout) -> str:
  rows = cfg.eval.batch_size // 2 // layout.shards * layout.shards
  if not rows:
    return 'use a smaller model.context'
  return f'try --config.eval.batch_size={rows}'


def _rows(used: Memory) -> list[str]:
  beside = used.gradients + used.updates + used.kernels
  parts = {
    'state': used.state,
    'gradients, updates, copies': beside,
    'activations': used.activations + used.working,
    'logits and loss': used.logits,
    'together': used.total,
  }
  return [f'  {name:<28}{amount(value):>9}' for name, value in parts.items()]


def suggestion(
  run: Sketch, layout: Layout, bound: Bound, smaller: bool = False
) -> str:
  """Flags to paste."""
  found = search_lib.options(run, layout, bound, smaller)
  option = search_lib.best(found, run.cfg, layout)
  if option is None:
    return (
      'it fits with no train.accumulate and model.remat; use a smaller '
      'model.width, model.depth or model.context, or more devices'
    )
  flags = search_lib.flags(option, run.cfg)
  text = f'try {" ".join(flags)}' if flags else 'try fewer other programs'
  rows = found[0].rows
  if 0 < rows < run.cfg.train.batch_size:
    text += f', or a smaller batch: --config.train.batch_size={rows}'
  return text
