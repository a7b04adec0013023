"""The parts of a plan about what fits, as text."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from craft_jax.config.settings import Config
from craft_jax.errors import UserError
from craft_jax.train.plan import search
from craft_jax.train.plan.devices import Device
from craft_jax.train.plan.layout import AXES, Layout
from craft_jax.train.plan.memory import ERROR, USABLE, cache_bytes
from craft_jax.train.plan.model import Sketch
from craft_jax.train.plan.search import Bound, Option
from craft_jax.train.plan.step import Plan, estimate
from craft_jax.train.plan.text import amount, duration

_DISK = 1e9  # bytes/s that a checkpoint is assumed to be written with


def strategies(plan: Plan) -> list[tuple[str, Plan | str]]:
  """The plan with all devices on each axis alone; or why that cannot be."""
  found: list[tuple[str, Plan | str]] = []
  for axis in AXES:
    layout = Layout(**{axis: plan.layout.devices})
    try:
      other = estimate(plan.sketch, plan.device, layout, plan.utilisation)
    except UserError as e:
      found.append((axis, str(e)))
    else:
      found.append((axis, other))
  return found


def strategies_dict(plan: Plan) -> dict[str, Any]:
  """By axis: bytes on a device and seconds of a step, or what is wrong."""
  return {
    axis: {'problem': other}
    if isinstance(other, str)
    else {
      'memory_total': other.memory.total,
      'fits': other.fits,
      'step_seconds': other.step_seconds[1],
    }
    for axis, other in strategies(plan)
  }


def strategies_text(plan: Plan) -> str:
  """A row per axis that takes all devices."""
  lines = [
    f'all {plan.layout.devices} devices on one axis, with this remat and '
    'accumulate',
    f'  {"":<8}{"state":>9}{"activations":>13}{"together":>10}{"step":>9}',
  ]
  for axis, other in strategies(plan):
    if isinstance(other, str):
      lines.append(f'  {axis:<8}{other}')
      continue
    used = other.memory
    fits = '' if other.fits else '  does not fit'
    lines.append(
      f'  {axis:<8}{amount(used.state):>9}'
      f'{amount(used.activations + used.working):>13}'
      f'{amount(used.total):>10}{duration(other.step_seconds[1]):>9}{fits}'
    )
  return '\n'.join(lines)


def run_text(plan: Plan) -> str:
  """What the whole run takes: time, checkpoints, and a text to be written."""
  facts = run_facts(plan)
  train = plan.sketch.cfg.train
  lines = [
    f'whole run, {train.steps:,} steps, evaluations and compilation left out',
    f'  {"work":<20}{amount(facts["flops_per_token"], "FLOP"):>9}   per '
    'token (a character, or a byte of it), forward and backward',
    f'  {"time":<20}{duration(facts["seconds"][0]):>9}   to '
    f'{duration(facts["seconds"][1])}',
    f'  {"checkpoint":<20}{amount(facts["checkpoint_bytes"]):>9}   each, '
    f'{facts["saves"]} of them, {facts["kept"]} kept at most: '
    f'{amount(facts["kept"] * facts["checkpoint_bytes"])}',
    f'  {"to write one":<20}{duration(facts["checkpoint_seconds"]):>9}   at '
    f'{amount(_DISK, "B/s")}, while training goes on',
    f'  {"cache":<20}{amount(facts["cache_bytes"]):>9}   per text, when the '
    'model writes',
  ]
  return '\n'.join(lines)


def run_facts(plan: Plan) -> dict[str, Any]:
  """The figures of `run_text`, in bytes, FLOPs and seconds."""
  cfg = plan.sketch.cfg
  steps, every = cfg.train.steps, cfg.checkpoint.every
  saves = 1 + (steps - 1) // every if every else 1
  size = plan.sketch.state_bytes
  return {
    'flops_per_token': plan.sketch.flops_per_token,
    'seconds': [steps * seconds for seconds in plan.step_seconds],
    'checkpoint_bytes': size,
    'saves': saves,
    'kept': min(saves, cfg.checkpoint.keep + 1),  # the best one stays
    'checkpoint_seconds': size / _DISK,
    'cache_bytes': cache_bytes(plan.sketch),
  }


def options_of(sketch: Sketch, plan: Plan) -> list[Option]:
  """What of a run fits on the devices of a plan.

  Args:
    sketch: the run, as it was asked about.
    plan: whose layout and device.
  """
  bound = Bound(USABLE * plan.device.memory, plan.device.platform)
  return search.options(sketch, plan.layout, bound)


def options_text(
  options: Sequence[Option], cfg: Config, error: str, layout: Layout
) -> str:
  """The table of what fits, and flags to paste.

  Args:
    options: of `search.options`.
    cfg: that was asked about.
    error: how far the bytes may be off, in words.
    layout: sizes of the mesh axes.
  """
  batch = cfg.train.batch_size
  lines = [
    f'what fits on {layout}, {error}',
    f'  {"remat":<8}{"largest micro-batch":>20}   batch_size={batch} needs',
  ]
  lines += [
    f'  {o.remat:<8}{o.rows or "none":>20}   '
    + (f'accumulate={o.accumulate}' if o.accumulate else 'more than there is')
    for o in options
  ]
  lines += [f'  {line}' for line in _pasted(options, cfg, layout)]
  return '\n'.join(lines)


def _pasted(
  options: Sequence[Option], cfg: Config, layout: Layout
) -> Iterable[str]:
  choice = search.best(list(options), cfg, layout)
  if choice:
    flags = search.flags(choice, cfg)
    yield f'this batch: {" ".join(flags) or "as it is"}'
  for option in options:
    if option.rows:
      flags = search.largest_flags(option, cfg)
      yield f'largest batch, remat={option.remat}: {" ".join(flags)}'


def error_text(platform: str) -> str:
  """How far a plan's bytes beside the state were off, in words."""
  if platform not in ERROR:
    return 'by arithmetic that was not measured on such a device'
  least, most = ERROR[platform]
  kind = {'cpu': 'CPUs', 'gpu': 'one H200'}[platform]
  return (
    f'by arithmetic (measured on {kind}: {least:.2f} to {most:.2f} of it, '
    'docs/memory.md)'
  )


def as_dict(options: Sequence[Option], cfg: Config) -> list[dict[str, Any]]:
  """The options as plain values, with their flags."""
  return [
    o._asdict()
    | {
      'flags': search.flags(o, cfg) if o.accumulate else None,
      'largest_flags': search.largest_flags(o, cfg) if o.rows else None,
    }
    for o in options
  ]


def with_memory(device: Device, size: float) -> Device:
  """The same device with another memory, in bytes."""
  return dataclasses.replace(device, memory=float(size))
