"""Formats a recording as tables and as JSON."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from craft_jax.train.plan.text import amount, duration
from craft_jax.train.profile import hlo
from craft_jax.train.profile.bottleneck import Recording, shares, verdict
from craft_jax.train.profile.timeline import IDLE, KINDS, Row

_SHORT = {
  hlo.PRODUCT: 'product',
  hlo.ELEMENTWISE: 'elementwise',
  hlo.MOVE: 'copy',
  hlo.COLLECTIVE: 'collective',
  hlo.SCATTER: 'gather',
}

_LOST = 1e-3  # share of lost operations from which a warning is shown


def text(recording: Recording, top: int) -> str:
  """Formats a recording as tables with the `top` operations and a verdict."""
  found = recording.profile
  parts = [
    '\n'.join(_head(recording)),
    '\n'.join(_shares('by kind', _kinds(recording), found.step_seconds, KINDS)),
    '\n'.join(_shares('by part of the step', found.parts, found.step_seconds)),
    '\n'.join(_operations(found.rows, top, found.step_seconds)),
    '\n'.join(_rates(recording)),
    '\n'.join(_memory(recording.memory)),
    f'trace    {recording.folder}\nverdict  {verdict(recording)}',
  ]
  return '\n\n'.join(part for part in parts if part)


def as_dict(recording: Recording, top: int) -> dict[str, Any]:
  """A recording with its `top` operations as a dict for JSON.

  Times are in seconds per step, sizes in bytes.
  """
  values = dataclasses.asdict(recording)
  found = values.pop('profile')
  found['rows'] = list(found['rows'][:top])
  return {
    **values,
    'folder': str(recording.folder),
    'utilisation': recording.utilisation,
    'product_rate': recording.product_rate,
    'byte_rate': recording.byte_rate,
    'shares': shares(recording),
    'verdict': verdict(recording),
    **found,
  }


def _head(recording: Recording) -> Iterator[str]:
  found = recording.profile
  mesh = ' x '.join(str(size) for size in recording.mesh.values())
  yield (
    f'devices  {found.devices} x {recording.device}, mesh {mesh}, '
    f'{recording.precision}'
  )
  yield (
    f'traced   {found.steps} steps of {recording.tokens:,} tokens, '
    f'{recording.steps_per_call} per dispatch; compiled in '
    f'{recording.compile_seconds:.1f} s'
  )
  slower = found.step_seconds / recording.plain_seconds - 1
  yield (
    f'step     {duration(recording.plain_seconds)}, '
    f'{duration(found.step_seconds)} while traced ({slower:+.0%}): '
    f'{recording.tokens / recording.plain_seconds:,.0f} tokens per second'
  )
  yield (
    f'host     {duration(recording.wait_seconds)} per step waiting for data, '
    f'{recording.recompiled} programs compiled while traced'
  )
  if found.lost > _LOST:
    yield (
      f'warning  the trace lacks {found.lost:.1%} of a device; trace fewer '
      'steps'
    )


def _kinds(recording: Recording) -> dict[str, float]:
  """Seconds per step of each kind, idle time last."""
  kinds = dict(recording.profile.kinds)
  idle = kinds.pop(IDLE)
  return dict(sorted(kinds.items(), key=lambda item: -item[1])) | {IDLE: idle}


def _shares(
  title: str,
  seconds: Mapping[str, float],
  step: float,
  names: Mapping[str, str] | None = None,
) -> Iterator[str]:
  yield f'{title:<36}{"ms/step":>9}{"share":>8}'
  for name, value in seconds.items():
    label = (names or {}).get(name, name)
    yield f'  {label:<34}{1e3 * value:9.3f}{value / step:8.1%}'


def _operations(rows: Sequence[Row], top: int, step: float) -> Iterator[str]:
  shown = rows[:top]
  wide = max((len(row.source) for row in shown), default=0)
  yield (
    f'{"top operations":<15}{"ms/step":>9}{"share":>7}{"calls":>7}  '
    f'{"part":<11}{"source":<{wide + 2}}in the trace'
  )
  for row in shown:
    more = len(row.operations) - 1
    name = row.operations[0] + (f' + {more}' if more else '')
    yield (
      f'  {_SHORT.get(row.kind, row.kind):<13}{1e3 * row.seconds:9.3f}'
      f'{row.seconds / step:7.1%}{row.calls:7.4g}  {row.part:<11}'
      f'{row.source:<{wide}}  {name}'
    )
  rest = sum(row.seconds for row in rows[top:])
  if rest:
    name = f'{len(rows) - top} more'
    yield f'  {name:<13}{1e3 * rest:9.3f}{rest / step:7.1%}'


def _rates(recording: Recording) -> Iterator[str]:
  found, top = recording.profile, recording.ceilings
  yield f'per device, of {amount(top.flops, "FLOP/s")} and ' + amount(
    top.bandwidth, 'B/s'
  )
  yield f'  ({top.source})'
  model = recording.flops / recording.plain_seconds / found.devices
  byte_share = recording.byte_rate / top.bandwidth
  for name, rate, unit, share in (
    ('model', model, 'FLOP/s', recording.utilisation),
    (
      'products while they run',
      recording.product_rate,
      'FLOP/s',
      recording.product_rate / top.flops,
    ),
    ('operands and outputs', recording.byte_rate, 'B/s', byte_share),
  ):
    yield f'  {name:<24}{amount(rate, unit):>16}{share:8.1%}'
  if found.kinds[hlo.COLLECTIVE]:
    yield (
      f'  collectives wait for other devices '
      f'{1e3 * found.waiting_seconds:.3f} ms of their '
      f'{1e3 * found.kinds[hlo.COLLECTIVE]:.3f}'
    )


def _memory(memory: Mapping[str, int]) -> Iterator[str]:
  if not memory:
    return
  yield f'{"buffers of the program, a device":<36}{"MiB":>9}'
  for name, value in memory.items():
    yield f'  {name:<34}{value / 2**20:9.2f}'
