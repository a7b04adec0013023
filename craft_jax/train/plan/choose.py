"""Which mesh, rematerialisation and accumulation to run with."""

import dataclasses
from collections.abc import Iterator

from craft_jax.errors import UserError
from craft_jax.train.plan.devices import Device
from craft_jax.train.plan.layout import Layout
from craft_jax.train.plan.memory import USABLE
from craft_jax.train.plan.model import Sketch, with_model
from craft_jax.train.plan.step import UTILISATION, Plan, estimate

_REMAT = ('none', 'dots', 'block')  # ever less memory
_TIE = 1.1  # estimates closer than this are equal; the simpler plan wins


def layouts(num_devices: int) -> Iterator[Layout]:
  """Every way to spread devices over the axes, the simplest first."""
  divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
  for tensor in divisors:
    rest = num_devices // tensor
    for fsdp in divisors:
      if rest % fsdp == 0:
        yield Layout(rest // fsdp, fsdp, tensor)


def recommend(
  sketch: Sketch,
  device: Device,
  num_devices: int,
  utilisation: float = UTILISATION,
) -> tuple[Plan, str]:
  """The simplest of the layouts that need the least time and fit, and why.

  Tries every mesh with the run's rematerialisation and heavier ones, each with
  the fewest micro-batches that fit. Time is products, optimizer and
  communication one after the other: the choice must not lean on an overlap
  that may not come. Of those within a tenth of the least, the one with the
  smallest tensor axis, the fewest micro-batches, the lightest
  rematerialisation and then the least time is taken.

  Args:
    sketch: the run; its `model.remat` and `train.accumulate` are the least.
    device: what it runs on.
    num_devices: how many.
    utilisation: share of the peak that products reach.

  Returns:
    The plan and its reason. Where nothing fits, the plan that needs the least
    memory, which says so itself (`fits`).

  Raises:
    UserError: no mesh divides the model and the batch.
  """
  if num_devices < 1:
    raise UserError(f'{num_devices} devices; give at least 1')
  plans = [
    plan
    for remat in _REMAT[_REMAT.index(sketch.cfg.model.remat) :]
    for layout in layouts(num_devices)
    if (plan := _leanest(sketch, remat, device, layout, utilisation))
  ]
  if not plans:
    rows = sketch.cfg.train.batch_size // sketch.cfg.train.accumulate
    raise UserError(
      f'no mesh of {num_devices} devices divides the model and '
      f'train.batch_size / train.accumulate = {rows}; use a multiple of '
      f'{num_devices}, or fewer devices'
    )
  fitting = [plan for plan in plans if plan.fits]
  if not fitting:
    least = min(plans, key=lambda plan: plan.memory.total)
    return least, _too_large(least)
  best = min(plan.step_seconds[1] for plan in fitting)
  close = [p for p in fitting if p.step_seconds[1] <= best * _TIE]
  chosen = min(close, key=_complication)
  return chosen, _reason(chosen, sketch)


def _complication(plan: Plan) -> tuple[float, ...]:
  """Less is simpler: no split layers, few micro-batches, little repeated."""
  cfg = plan.sketch.cfg
  return (
    plan.layout.tensor,
    cfg.train.accumulate,
    _REMAT.index(cfg.model.remat),
    plan.step_seconds[1],
  )


def _leanest(
  sketch: Sketch, remat: str, device: Device, layout: Layout, utilisation: float
) -> Plan | None:
  """The plan with the fewest micro-batches that fits, else with the most.

  None where the layout does not divide. More micro-batches send gradients and
  kernels more often, so no more than needed.
  """
  best = None
  pieces = sketch.cfg.train.accumulate
  while sketch.cfg.train.batch_size % pieces == 0:
    changed = with_model(sketch, remat, pieces)
    if changed.problem(layout):
      break
    best = estimate(changed, device, layout, utilisation)
    if best.fits:
      break
    pieces *= 2
  return best


def _reason(chosen: Plan, sketch: Sketch) -> str:
  """Why a plan was chosen, against `data` alone."""
  cfg, layout = chosen.sketch.cfg, chosen.layout
  simple = Layout(layout.devices)
  parts = []
  if layout != simple:
    try:
      plan = estimate(chosen.sketch, chosen.device, simple, chosen.utilisation)
    except UserError:
      parts.append(f'the batch does not divide over {layout.devices} devices')
    else:
      parts.append(_against(chosen, plan))
  elif layout.devices > 1:
    parts.append('the state fits on each device, so only the batch is split')
  else:
    parts.append('one device')
  if cfg.model.remat != sketch.cfg.model.remat:
    parts.append(f'remat={cfg.model.remat} for the activations')
  if cfg.train.accumulate != sketch.cfg.train.accumulate:
    parts.append(
      f'accumulate={cfg.train.accumulate} for micro-batches that fit'
    )
  return '; '.join(parts)


def _against(chosen: Plan, simple: Plan) -> str:
  """What is wrong with splitting the batch alone."""
  if not simple.fits:
    return (
      f'data={simple.layout.data} alone needs {simple.memory.total / 1e9:,.0f} '
      f'GB of {USABLE * simple.device.memory / 1e9:,.0f} GB per device'
    )
  there, here = simple.communication_seconds, chosen.communication_seconds
  return (
    f'communication takes {1e3 * here:.3g} ms, not {1e3 * there:.3g} ms as '
    f'with data={simple.layout.data} alone'
  )


def _too_large(plan: Plan) -> str:
  """What would help a run that fits on no mesh."""
  used = dataclasses.asdict(plan.memory)
  largest = max(used, key=lambda name: used[name])
  over = plan.memory.total / (USABLE * plan.device.memory)
  if largest in ('activations', 'working', 'logits'):
    remedy = 'a smaller train.batch_size or model.context'
  else:
    remedy = 'a leaner optim.name, no train.ema'
  return (
    f'nothing fits: {over:.1f} times the usable memory, most of it {largest}; '
    f'{remedy}, more or larger devices would help'
  )
