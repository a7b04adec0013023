"""Rules for settings that conflict: a condition and an error message each.

In a message `{model.width}` is the value of a setting; any other name in
braces is a value that the condition returns. `config.meaning` derives from the
messages which settings interact.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from craft_jax.config.settings import Config

_AXES = ('data', 'fsdp', 'tensor')
_TASK_METRICS = ('val_exact_match', 'val_cer', 'val_wer')


class Rule(NamedTuple):
  """A rule that relates settings.

  Attributes:
    message: one line: what is wrong and the remedy.
    broken: returns a true value if a config breaks the rule; a mapping gives
      further values for the message.
  """

  message: str
  broken: Callable[[Config], Any]


def clashes(cfg: Config) -> Iterator[str]:
  """Yields the error message of every rule that a config breaks."""
  for rule in RULES:
    found = rule.broken(cfg)
    if found:
      more = found if isinstance(found, Mapping) else {}
      yield rule.message.format(**vars(cfg), **more)


def _kv_heads(cfg: Config) -> dict[str, int] | None:
  kv = cfg.model.num_kv_heads or cfg.model.num_heads
  return {'kv': kv} if cfg.model.num_heads % kv else None


def _rotated(cfg: Config) -> dict[str, int] | None:
  m = cfg.model
  if m.position != 'rope':
    return None
  entries = m.width // m.num_heads
  rotated = int(entries * m.rope_fraction)
  if rotated and rotated % 2 == 0:
    return None
  return {'rotated': rotated, 'entries': entries}


def _no_global_layer(cfg: Config) -> dict[str, int] | None:
  m = cfg.model
  if m.local_per_global >= m.depth > 0 and m.local_per_global:
    return {'most': m.depth - 1}
  return None


def _long_warmup(cfg: Config) -> dict[str, int] | None:
  steps, warmup = cfg.train.steps, cfg.optim.warmup_steps
  return {'shorter': steps // 10} if warmup and warmup >= steps else None


def _malformed_extension(cfg: Config) -> dict[str, str] | None:
  wrong = [
    item
    for item in cfg.train.extended
    if not re.fullmatch(r'[1-9]\d{0,17}:[1-9]\d{0,17}', item, re.ASCII)
  ]
  return {'malformed': wrong[0]} if wrong else None


def _drawn(cfg: Config) -> bool:
  """Whether the validation split is taken from the training text."""
  return cfg.data.split != 'given'


def _pairs(cfg: Config) -> bool:
  return cfg.data.format == 'pairs'


def _is_empty(cfg: Config, axis: str) -> bool:
  return getattr(cfg.mesh, axis) == 0


def _free_axes(cfg: Config) -> dict[str, str] | None:
  free = [f'mesh.{name}' for name in _AXES if getattr(cfg.mesh, name) == -1]
  return {'axes': ' and '.join(free)} if len(free) > 1 else None


RULES: tuple[Rule, ...] = (
  Rule(
    'model.width={model.width} is not divisible by model.num_heads='
    '{model.num_heads}; use a multiple of {model.num_heads}',
    lambda c: c.model.width % c.model.num_heads,
  ),
  Rule(
    'model.num_heads={model.num_heads} is not divisible by model.num_kv_heads='
    '{kv}; use a divisor of {model.num_heads}',
    _kv_heads,
  ),
  Rule(
    'model.position=rope rotates {rotated} of {entries} entries per head, '
    'which must be even and positive; change model.width, model.num_heads or '
    'model.rope_fraction',
    _rotated,
  ),
  Rule(
    'model.window={model.window} is longer than model.context={model.context}; '
    'shorten it, or use 0 for full attention',
    lambda c: c.model.window > c.model.context,
  ),
  Rule(
    'model.local_per_global={model.local_per_global} needs model.window > 0',
    lambda c: c.model.local_per_global and not c.model.window,
  ),
  Rule(
    'model.local_per_global={model.local_per_global} leaves no global layer in '
    'model.depth={model.depth}; use at most {most}',
    _no_global_layer,
  ),
  Rule(
    'model.depth={model.depth} is not divisible by model.unroll={model.unroll};'
    ' use a divisor, or 0 for the default',
    lambda c: c.model.unroll and c.model.depth % c.model.unroll,
  ),
  Rule(
    'model.position=sinusoidal needs an even model.width, not {model.width}',
    lambda c: c.model.position == 'sinusoidal' and c.model.width % 2,
  ),
  Rule(
    'optim.warmup_steps={optim.warmup_steps} must be below train.steps='
    '{train.steps}; use --config.optim.warmup_steps={shorter}, or train longer',
    _long_warmup,
  ),
  Rule(
    'optim.decay_steps={optim.decay_steps} needs optim.schedule=wsd, not '
    '{optim.schedule}; drop it or change the schedule',
    lambda c: c.optim.decay_steps and c.optim.schedule != 'wsd',
  ),
  Rule(
    'optim.warmup_steps={optim.warmup_steps} plus optim.decay_steps='
    '{optim.decay_steps} exceed train.steps={train.steps}; shorten them, or '
    'train longer',
    lambda c: c.optim.warmup_steps + c.optim.decay_steps > c.train.steps,
  ),
  Rule(
    'train.batch_size={train.batch_size} is not divisible by train.accumulate='
    '{train.accumulate}; use a divisor of {train.batch_size}',
    lambda c: c.train.batch_size % c.train.accumulate,
  ),
  Rule(
    'train.extended={malformed!r} is not STEP:STEPS; leave it out, since craft '
    'writes it',
    _malformed_extension,
  ),
  Rule(
    'train.stop_at_step={train.stop_at_step} is past train.steps={train.steps};'
    ' stop earlier, or raise train.steps',
    lambda c: c.train.stop_at_step > c.train.steps,
  ),
  Rule(
    'train.bad_step=rollback needs checkpoint.every > 0, to have a step to go '
    'back to',
    lambda c: c.train.bad_step == 'rollback' and not c.checkpoint.every,
  ),
  Rule(
    'eval.stride={eval.stride} is longer than model.context={model.context}; '
    'use at most {model.context}',
    lambda c: c.eval.stride > c.model.context,
  ),
  Rule(
    'data.source=path needs data.path; add --config.data.path=my.txt (a file, '
    'a folder or a glob)',
    lambda c: c.data.source == 'path' and not c.data.path,
  ),
  Rule(
    'data.source=tfds needs data.tfds_name; use --config=tfds:NAME',
    lambda c: c.data.source == 'tfds' and not c.data.tfds_name,
  ),
  Rule(
    'data.split=given needs data.valid_path; add '
    '--config.data.valid_path=valid.txt',
    lambda c: not (_drawn(c) or c.data.source == 'tfds' or c.data.valid_path),
  ),
  Rule(
    'data.valid_path needs data.split=given, not {data.split}',
    lambda c: _drawn(c) and c.data.valid_path,
  ),
  Rule(
    'data.test_path needs data.split=given, not {data.split}',
    lambda c: _drawn(c) and c.data.test_path,
  ),
  Rule(
    'data.valid_fraction must be above 0, or there is nothing to evaluate',
    lambda c: _drawn(c) and not c.data.valid_fraction,
  ),
  Rule(
    'data.valid_fraction={data.valid_fraction} plus data.test_fraction='
    '{data.test_fraction} leave no training text; their sum must be below 1',
    lambda c: _drawn(c) and c.data.valid_fraction + c.data.test_fraction >= 1,
  ),
  Rule(
    'data.format=pairs reads files: it needs data.source=path, not '
    '{data.source}; add --config.data.source=path',
    lambda c: _pairs(c) and c.data.source not in ('path', 'cmudict'),
  ),
  Rule(
    'data.format=pairs packs whole pairs into windows: it needs '
    'data.order=windows, not {data.order}; add --config.data.order=windows',
    lambda c: _pairs(c) and c.data.order != 'windows',
  ),
  Rule(
    'data.format=pairs needs model.documents=true, so that no pair sees the '
    'others of its window; add --config.model.documents=true',
    lambda c: _pairs(c) and not c.model.documents,
  ),
  Rule(
    'eval.stride={eval.stride} would cut pairs (data.format=pairs), which are '
    'scored once, whole; use --config.eval.stride=0',
    lambda c: _pairs(c) and c.eval.stride,
  ),
  Rule(
    'data.format=pairs does not augment; data.case_rate, data.noise_rate and '
    'data.span_rate must be 0',
    lambda c: (
      _pairs(c) and (c.data.case_rate or c.data.noise_rate or c.data.span_rate)
    ),
  ),
  Rule(
    'data.format=pairs does not clean: text.clean must be empty; clean the '
    'file itself',
    lambda c: _pairs(c) and c.text.clean,
  ),
  Rule(
    'data.prompt_field and data.completion_field must be the names of two '
    'fields (data.format=pairs), not {data.prompt_field} and '
    '{data.completion_field}',
    lambda c: (
      _pairs(c)
      and (
        not c.data.prompt_field
        or not c.data.completion_field
        or c.data.prompt_field == c.data.completion_field
      )
    ),
  ),
  Rule(
    'data.group_field={data.group_field} needs data.format=pairs',
    lambda c: c.data.group_field and not _pairs(c),
  ),
  Rule(
    'checkpoint.best={checkpoint.best} needs data.format=pairs and '
    'eval.task_rows above 0; use checkpoint.best=val_loss',
    lambda c: (
      c.checkpoint.best in _TASK_METRICS
      and not (_pairs(c) and c.eval.task_rows)
    ),
  ),
  Rule(
    'data.span_length={data.span_length} is longer than model.context='
    '{model.context}; shorten it',
    lambda c: c.data.span_rate and c.data.span_length > c.model.context,
  ),
  Rule(
    'text.max_chars={text.max_chars} needs text.vocabulary=char',
    lambda c: c.text.max_chars and c.text.vocabulary != 'char',
  ),
  Rule(
    'text.max_chars={text.max_chars} drops characters, so it needs '
    'text.unknown=replace',
    lambda c: c.text.max_chars and c.text.unknown == 'error',
  ),
  *(
    Rule(
      f'mesh.{axis}=0 must be positive, or -1 for all remaining devices',
      functools.partial(_is_empty, axis=axis),
    )
    for axis in _AXES
  ),
  Rule('only one of {axes} may be -1', _free_axes),
)
