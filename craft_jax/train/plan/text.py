"""A plan by arithmetic, as text and as plain values."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from craft_jax.config.settings import Config
from craft_jax.runs.checkpoint import retention
from craft_jax.train.plan import search
from craft_jax.train.plan.memory import ERROR, USABLE, cache_bytes, memory
from craft_jax.train.plan.model import Layout, Sketch
from craft_jax.train.plan.search import Bound, Option

_SCALES = (('P', 1e15), ('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3))
_MEMORY = {
  'params': 'parameters',
  'opt_state': 'optimizer state',
  'ema': 'averaged parameters',
  'counts': 'counts',
  'gradients': 'gradients',
  'updates': 'updates',
  'kernels': 'copies of kernels',
  'activations': 'activations kept',
  'working': 'layer at work',
  'logits': 'logits and loss',
}


def amount(value: float, unit: str = 'B') -> str:
  """'1.25 GB': a number with a decimal prefix."""
  for prefix, scale in _SCALES:
    if value >= scale:
      return f'{value / scale:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'


def duration(seconds: float) -> str:
  """'12.3 ms'; minutes from two on, and hours."""
  for unit, scale in (('h', 3600.0), ('min', 60.0)):
    if seconds >= 2 * scale:
      return f'{seconds / scale:.3g} {unit}'
  for unit, scale in (('s', 1.0), ('ms', 1e-3)):
    if seconds >= scale:
      return f'{seconds / scale:.3g} {unit}'
  return f'{seconds * 1e6:.3g} us'


class Plan(NamedTuple):
  """What a run needs on devices of one kind.

  Attributes:
    asked: the run, as it was asked about.
    run: the same with what it needs to fit.
    layout: of the devices.
    reason: for this layout.
    device: name of one.
    bytes: of its memory.
    platform: JAX's name of it.
  """

  asked: Sketch
  run: Sketch
  layout: Layout
  reason: str
  device: str
  bytes: float
  platform: str

  @property
  def bound(self) -> Bound:
    """What the run has to fit into."""
    return Bound(USABLE * self.bytes, self.platform)

  @property
  def options(self) -> list[Option]:
    """What of the run, as it was asked about, fits."""
    return search.options(self.asked, self.layout, self.bound)

  @property
  def flags(self) -> list[str]:
    """The settings of the plan that its config does not have yet."""
    before, cfg = self.asked.cfg, self.run.cfg
    wanted: dict[str, object] = {
      f'mesh.{axis}': size for axis, size in self.layout._asdict().items()
    }
    if cfg.model.remat != before.model.remat:
      wanted['model.remat'] = cfg.model.remat
    if cfg.train.accumulate != before.train.accumulate:
      wanted['train.accumulate'] = cfg.train.accumulate
    if before.eval.batch_size % self.layout.shards:
      wanted['eval.batch_size'] = self.layout.shards
    return [f'--config.{name}={value}' for name, value in wanted.items()]


def recommended(
  asked: Sketch, num_devices: int, device: str, size: float, platform: str
) -> Plan:
  """The plan on the mesh of `search.recommend`, and why it is this one.

  Raises:
    UserError: no mesh divides the model and the batch.
  """
  bound = Bound(USABLE * size, platform)
  layout, run = search.recommend(asked, num_devices, bound)
  simple = Layout(num_devices)
  if search.needed(run, layout, bound) > bound.bytes:
    reason = 'nothing fits, and this needs the least'
  elif num_devices == 1:
    reason = 'one device'
  elif layout == simple:
    reason = 'the state fits on each device, so only the batch is split'
  elif asked.problem(simple):
    reason = f'the batch does not divide over {num_devices} devices'
  else:
    alone = amount(search.needed(asked, simple, bound))
    reason = f'data={num_devices} alone needs {alone} on each device'
  return Plan(asked, run, layout, reason, device, size, platform)


def text(plan: Plan) -> str:
  """For people."""
  error = error_text(plan.platform)
  parts = [
    _head(plan),
    _bytes(plan),
    *([_strategies_text(plan)] if plan.layout.devices > 1 else []),
    _run_text(plan.run),
    options_text(plan.options, plan.asked.cfg, error, plan.layout),
    'flags\n  ' + ' '.join(plan.flags),
  ]
  return '\n\n'.join(parts)


def as_dict(plan: Plan) -> dict[str, Any]:
  """As plain values, in bytes and FLOPs."""
  used, train = memory(plan.run, plan.layout, plan.platform), plan.run.cfg.train
  return {
    'device': plan.device,
    'devices': plan.layout.devices,
    'mesh': plan.layout._asdict(),
    'reason': plan.reason,
    'flags': plan.flags,
    'params': plan.run.num_params,
    'tokens': train.batch_size * plan.run.cfg.model.context,
    'memory': dataclasses.asdict(used),
    'memory_total': used.total,
    'memory_usable': plan.bound.bytes,
    'fits': used.total <= plan.bound.bytes,
    'run': run_facts(plan.run),
    'strategies': {
      axis: {'problem': other}
      if isinstance(other, str)
      else {
        'memory_total': other.total,
        'fits': other.total <= plan.bound.bytes,
      }
      for axis, other in _strategies(plan)
    },
    'options': options_dict(plan.options, plan.asked.cfg),
  }


def model_lines(run: Sketch) -> list[str]:
  """The model and the batch of a run."""
  cfg = run.cfg
  tokens = cfg.train.batch_size * cfg.model.context
  return [
    f'model    {run.num_params:,} parameters, {run.vocabulary_size} tokens, '
    f'context {cfg.model.context}, {cfg.model.precision}, '
    f'remat={cfg.model.remat}',
    f'batch    {cfg.train.batch_size} rows, {tokens:,} tokens, '
    f'accumulate={cfg.train.accumulate}',
  ]


def _head(plan: Plan) -> str:
  return '\n'.join(
    [
      'An estimate by arithmetic; nothing was compiled or measured.',
      '',
      *model_lines(plan.run),
      f'devices  {plan.layout.devices} x {plan.device}, {amount(plan.bytes)} '
      'each',
      f'mesh     {plan.layout}: {plan.reason}',
    ]
  )


def _bytes(plan: Plan) -> str:
  used, usable = memory(plan.run, plan.layout, plan.platform), plan.bound.bytes
  rows = [
    f'  {_MEMORY[name]:<20}{amount(value):>9}'
    for name, value in dataclasses.asdict(used).items()
    if value >= 1e3
  ]
  verdict = 'fits' if used.total <= usable else 'DOES NOT FIT'
  return '\n'.join(
    [
      'bytes per device',
      *rows,
      f'  {"together":<20}{amount(used.total):>9}   {verdict}: '
      f'{used.total / usable:.0%} of the usable {amount(usable)}',
    ]
  )


def _strategies(plan: Plan) -> Iterable[tuple[str, Any]]:
  """Bytes with all devices on each axis alone; or why that cannot be."""
  for axis in Layout._fields:
    layout = Layout(**{axis: plan.layout.devices})
    problem = plan.run.problem(layout)
    yield axis, problem or memory(plan.run, layout, plan.platform)


def _strategies_text(plan: Plan) -> str:
  lines = [
    f'all {plan.layout.devices} devices on one axis, with this remat and '
    'accumulate',
    f'  {"":<8}{"state":>9}{"activations":>13}{"together":>10}',
  ]
  for axis, used in _strategies(plan):
    if isinstance(used, str):
      lines.append(f'  {axis:<8}{used}')
      continue
    fits = '' if used.total <= plan.bound.bytes else '  does not fit'
    lines.append(
      f'  {axis:<8}{amount(used.state):>9}'
      f'{amount(used.activations + used.working):>13}'
      f'{amount(used.total):>10}{fits}'
    )
  return '\n'.join(lines)


def _run_text(run: Sketch) -> str:
  facts = run_facts(run)
  size, most = facts['checkpoint_bytes'], facts['most_checkpoints']
  return '\n'.join(
    [
      f'whole run, {run.cfg.train.steps:,} steps',
      f'  {"work":<20}{amount(facts["flops_per_token"], "FLOP"):>9}   per '
      'token (a character, or a byte of it), forward and backward',
      f'  {"checkpoint":<20}{amount(size):>9}   each, {most} at most '
      f'on the disk: {amount(most * size)}',
      f'  {"cache":<20}{amount(facts["cache_bytes"]):>9}   per text, when the '
      'model writes',
    ]
  )


def run_facts(run: Sketch) -> dict[str, Any]:
  """Work of a token, checkpoints, and the cache of a text to be written."""
  return {
    'flops_per_token': run.flops_per_token,
    'checkpoint_bytes': run.state_bytes,
    'most_checkpoints': retention.most(run.cfg.checkpoint),
    'cache_bytes': cache_bytes(run),
  }


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
  if choice := search.best(list(options), cfg, layout):
    flags = ' '.join(search.flags(choice, cfg))
    lines.append(f'  this batch: {flags or "as it is"}')
  lines += [
    f'  largest batch, remat={o.remat}: '
    + ' '.join(search.largest_flags(o, cfg))
    for o in options
    if o.rows
  ]
  return '\n'.join(lines)


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


def options_dict(
  options: Sequence[Option], cfg: Config
) -> list[dict[str, Any]]:
  """The options as plain values, with their flags."""
  return [
    o._asdict()
    | {
      'flags': search.flags(o, cfg) if o.accumulate else None,
      'largest_flags': search.largest_flags(o, cfg) if o.rows else None,
    }
    for o in options
  ]
