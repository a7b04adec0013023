"""What people are told of a run that was short of memory."""

import dataclasses
import json

import pytest

from craft_jax.config.settings import Config, Model
from craft_jax.errors import OutOfMemory, RunFailed, UserError
from craft_jax.train.plan import advice

_CFG = dataclasses.replace(
  Config(),
  model=Model(depth=2, width=64, num_heads=2, context=256, precision='auto'),
)


def error(**more):
  facts = {
    'doing': 'training',
    'bytes': 2_000_000_000,
    'compiled': False,
    'available': 1e9,
    'limit': 'a limit',
    'precision': 'float32',
    'vocabulary_size': 260,
    'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1},
    'platform': 'cpu',
  } | more
  return OutOfMemory(json.loads(json.dumps(facts)))


@pytest.mark.parametrize(
  'facts, kind, words, reported',
  [
    ({}, RunFailed, '--config.train.accumulate=', True),
    ({'available': None, 'limit': None}, RunFailed, '--auto-batch', True),
    ({'doing': 'evaluating'}, RunFailed, '--config.eval.batch_size=', True),
    ({'bytes': None}, RunFailed, '(no size was given)', True),
    ({'compiled': True}, UserError, 'as it is compiled, and a limit', False),
  ],
)
def test_facts_become_a_line_and_a_plan(facts, kind, words, reported):
  told, report = advice.explained(error(**facts), _CFG)
  assert type(told) is kind and words in str(told) and '\n' not in str(told)
  assert bool(report) == reported
  assert not report or 'activations' in report


def test_facts_alone_are_a_line_too():
  assert str(error(doing='evaluating')) == 'out of memory while evaluating'
