"""What a run needs on the devices at hand, as text and as plain values."""

from typing import Any

import jax

from craft_jax.train.plan.compiled import AtHand, Compiled
from craft_jax.train.plan.text import (
  amount,
  duration,
  model_lines,
  options_dict,
  options_text,
)

_PARTS = {
  'params': 'parameters',
  'opt_state': 'optimizer',
  'ema': 'averages',
}


def text(found: AtHand) -> str:
  """For people: bytes by mesh, what was measured, what fits."""
  parts = [_head(found), _meshes(found)]
  if found.measured:
    parts.append(_measured(found))
  first = _first(found)
  if found.options and first.left:
    error = (
      f'{amount(first.left)} on each device ({first.limit}), by the plan times '
      f'{first.correction:.2f}, as compiled'
    )
    parts.append(options_text(found.options, found.cfg, error, first.layout))
  return '\n\n'.join(parts)


def as_dict(found: AtHand) -> dict[str, Any]:
  """As plain values, in bytes and seconds."""
  return {
    'device': found.kind,
    'compiled': [
      {'problem': c} if isinstance(c, str) else _values(c)
      for c in found.compiled
    ],
    'measured': found.measured and found.measured._asdict(),
    'options': options_dict(found.options, found.cfg),
  }


def _values(c: Compiled) -> dict[str, Any]:
  return {
    'mesh': c.layout._asdict(),
    **c.state,
    'data': c.data,
    'temporaries': c.temporaries,
    'planned': c.planned,
    'together': c.together,
    'expected_peak': c.expected_peak,
    'left': c.left,
    'limit': c.limit,
    'compile_seconds': c.seconds,
  }


def _first(found: AtHand) -> Compiled:
  first = found.compiled[0]
  assert not isinstance(first, str)
  return first


def _head(found: AtHand) -> str:
  first = _first(found)
  return '\n'.join(
    [
      f'Compiled for {first.layout.devices} x {found.kind}, jax '
      f'{jax.__version__}, in {first.seconds:.1f} s.',
      '',
      *model_lines(first.sketch),
    ]
  )


def _meshes(found: AtHand) -> str:
  names = [*_PARTS.values(), 'data', 'temporaries', 'together', 'of the plan']
  lines = [
    "bytes on each device, by XLA's memory_analysis",
    f'  {"mesh":<26}' + ''.join(f'{name:>12}' for name in names),
  ]
  for c in found.compiled:
    if isinstance(c, str):
      lines.append(f'  {c}')
      continue
    sizes = [*(c.state[part] for part in _PARTS), c.data, c.temporaries]
    lines.append(
      f'  {c.layout!s:<26}'
      + ''.join(f'{amount(size):>12}' for size in [*sizes, c.together])
      + f'{c.correction:>12.2f}'
    )
  first = _first(found)
  if first.left:
    verdict = 'fits' if first.fits else 'DOES NOT FIT'
    lines.append(
      f'  {verdict}: {amount(first.left)} on each device ({first.limit})'
    )
  return '\n'.join(lines)


def _measured(found: AtHand) -> str:
  done, cfg, first = found.measured, found.cfg, _first(found)
  assert done
  lines = [
    'measured here',
    f'  {"step":<12}{duration(done.seconds_per_step):>9}   '
    f'{done.chars_per_second:,.0f} characters per second',
    f'  {"run":<12}'
    f'{duration(cfg.train.steps * done.seconds_per_step):>9}   '
    f'{cfg.train.steps:,} steps, evaluations and compilation left out',
    f'  {"checkpoint":<12}{amount(done.checkpoint_bytes):>9}   saved and '
    f'checked in {duration(done.checkpoint_seconds)}',
  ]
  if done.peak is not None:
    lines.append(
      f'  {"peak":<12}{amount(done.peak):>9}   above what was there before; '
      f'{amount(first.expected_peak)} were expected'
    )
  return '\n'.join(lines)
