"""A plan as text."""

import dataclasses
from collections.abc import Sequence

from craft_jax.config.settings import Config
from craft_jax.train.plan.devices import DEVICES, Device
from craft_jax.train.plan.layout import AXES
from craft_jax.train.plan.memory import USABLE
from craft_jax.train.plan.step import Plan

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


def device_name(device: Device) -> str:
  """Its name in the table, and its memory if that is another."""
  name, known = next(
    (name, d) for name, d in DEVICES.items() if d.kind == device.kind
  )
  if known.memory == device.memory:
    return name
  return f'{name} with {amount(device.memory)}'


def flags(before: Config, plan: Plan) -> list[str]:
  """The settings of a plan that a config does not have yet."""
  cfg = plan.sketch.cfg
  wanted: dict[str, object] = {
    f'mesh.{axis}': getattr(plan.layout, axis) for axis in AXES
  }
  if cfg.model.remat != before.model.remat:
    wanted['model.remat'] = cfg.model.remat
  if cfg.train.accumulate != before.train.accumulate:
    wanted['train.accumulate'] = cfg.train.accumulate
  if before.eval.batch_size % plan.layout.shards:
    wanted['eval.batch_size'] = plan.layout.shards
  return [f'--config.{name}={value}' for name, value in wanted.items()]


def text(
  plan: Plan, reason: str, before: Config, more: Sequence[str] = ()
) -> str:
  """The plan for people.

  Args:
    plan: what was estimated.
    reason: why this mesh.
    before: the config that was asked about.
    more: further parts, before the flags.
  """
  parts = [_head(plan, reason), _bytes(plan), _times(plan), _traffic(plan)]
  if not plan.fits:
    parts.append(_remedies(plan))
  parts += more
  parts.append('flags\n  ' + ' '.join(flags(before, plan)))
  return '\n\n'.join(parts)


def _head(plan: Plan, reason: str) -> str:
  sketch, device = plan.sketch, plan.device
  cfg = sketch.cfg
  speed = device.peak * plan.utilisation
  return '\n'.join(
    [
      'An estimate by arithmetic from data sheets; nothing was measured.',
      '',
      f'model    {sketch.num_params:,} parameters, {sketch.vocabulary_size} '
      f'tokens, context {cfg.model.context}, remat={cfg.model.remat}',
      f'batch    {cfg.train.batch_size} rows, {plan.tokens:,} tokens, '
      f'accumulate={cfg.train.accumulate}',
      f'devices  {plan.layout.devices} x {device_name(device)}, each '
      f'{amount(speed, "FLOP/s")} at {plan.utilisation:.0%} of the peak',
      f'mesh     {plan.layout}: {reason}',
    ]
  )


def _bytes(plan: Plan) -> str:
  used = dataclasses.asdict(plan.memory)
  rows = [
    f'  {_MEMORY[name]:<20}{amount(value):>9}'
    for name, value in used.items()
    if value >= 1e3
  ]
  usable = USABLE * plan.device.memory
  verdict = 'fits' if plan.fits else 'DOES NOT FIT'
  total = plan.memory.total
  return '\n'.join(
    [
      'bytes per device',
      *rows,
      f'  {"together":<20}{amount(total):>9}   {verdict}: '
      f'{total / usable:.0%} of the usable {amount(usable)}',
    ]
  )


def _times(plan: Plan) -> str:
  least, most = plan.step_seconds
  rate = plan.tokens / most, plan.tokens / least
  return '\n'.join(
    [
      f'time per step, {amount(plan.flops, "FLOP")}',
      f'  {"products":<20}{duration(plan.compute_seconds):>9}',
      f'  {"optimizer":<20}{duration(plan.optimizer_seconds):>9}',
      f'  {"communication":<20}{duration(plan.communication_seconds):>9}',
      f'  {"step":<20}{duration(least):>9}   to {duration(most)}, hidden '
      'behind the products or not',
      f'  {"tokens per second":<20}{amount(rate[1], ""):>9}  to '
      f'{amount(rate[0], "")}',
    ]
  )


def _traffic(plan: Plan) -> str:
  lines = ['sent by each device per step, and its time against the products']
  for c in plan.collectives:
    far = f', {amount(c.slow)} of it to other domains' if c.slow else ''
    lines.append(
      f'  {c.axis:<7}{c.kind:<15}{c.what:<19}{amount(c.fast + c.slow):>8}'
      f'{duration(c.seconds):>9}{c.seconds / plan.compute_seconds:>7.2f}{far}'
    )
  return '\n'.join([*lines, f'  {plan.verdict()}'])


def _remedies(plan: Plan) -> str:
  """What makes a plan that does not fit smaller, by its largest parts."""
  used, cfg = plan.memory, plan.sketch.cfg
  found = []
  if used.activations + used.working > used.state / 2:
    if cfg.model.remat != 'block':
      found.append('--config.model.remat=block keeps one row per layer')
    if plan.sketch.cfg.train.batch_size // cfg.train.accumulate > 1:
      found.append('a larger train.accumulate makes micro-batches smaller')
  if used.state > used.activations / 2:
    found.append('a larger mesh.fsdp splits the state')
    if cfg.train.ema:
      found.append('train.ema=0 keeps no averaged parameters')
  found.append('more devices, or larger ones')
  return '\n'.join(['what would help', *(f'  {line}' for line in found)])
