"""Constraints of requests: what is said of them is what is done."""

import asyncio
import json

import numpy as np
import pytest

from craft_jax.constrain import compile_choices, compile_regex
from craft_jax.constrain.budget import MAX_ENTRIES, MAX_STATES
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.engine.resident_constraints import Capacity
from craft_jax.inference.sampling.constraint_tables import (
  CONSTRAINT_MEMORY,
  state_bytes,
)
from craft_jax.serve import completions
from craft_jax.serve.admission import Limits
from craft_jax.serve.errors import ApiError
from craft_jax.serve.schemas import CompletionBody, ValidateBody
from tests.serve.conftest import in_process, written

BYTES = Vocabulary.byte()
_LEAST = Capacity(CONSTRAINT_MEMORY, BYTES).first


def _memory(states):
  """Bytes of tables in which a constraint may have so many states."""
  return (_LEAST + states) * state_bytes(BYTES.size)


def _schema(document):
  return {
    'response_format': {
      'type': 'json_schema', 'json_schema': {'schema': document},
    }
  }  # fmt: skip


# What no server of bytes took when its tables had 511 states.
_USUAL = [
  _schema({}),
  _schema({'type': 'object'}),
  _schema({'type': 'string', 'maxLength': 64}),
  {'regex': r'\w+@\w+'},
  {'regex': 'a{0,600}'},
]


def test_the_usual_tables_hold_whatever_can_be_compiled():
  assert Limits().constraint_memory == CONSTRAINT_MEMORY
  assert Capacity(CONSTRAINT_MEMORY, BYTES).most >= 10 * MAX_STATES
  for size in (5, 100, 1000, 10_000):
    letters = ''.join(chr(0x4E00 + i) for i in range(size))
    capacity = Capacity(CONSTRAINT_MEMORY, Vocabulary('char', letters))
    assert capacity.most >= MAX_ENTRIES // capacity.vocabulary.size


def test_a_memory_without_room_is_refused():
  with pytest.raises(UserError, match='no room for a constraint; give at lea'):
    Capacity(_memory(0), BYTES)
  assert Capacity(_memory(1), BYTES).most == 1


def test_equal_constraints_are_one():
  vocabulary = Vocabulary.byte()
  one, other = compile_regex('ab|ac', vocabulary), compile_regex(
    'a[bc]', vocabulary
  )  # fmt: skip
  assert one is not other and one == other and len({one, other}) == 1
  assert one == compile_choices(['ac', 'ab'], vocabulary)
  assert one != compile_regex('a[bcd]', vocabulary)


def _cases():
  """Constraints of 1 to about 120 states, those at the limit of 64 too."""
  rng = np.random.default_rng(0)
  cases = [{'regex': f'a{{{n}}}'} for n in (1, 62, 63, 64, 65, 90)]
  cases += [{'regex': f'(ab){{0,{n}}}'} for n in (31, 32, 33)]
  cases += [{'regex': r'\w'}, {'regex': '(?:'}, {'regex': '[^\\x00-\\x7f]'}]
  cases += [{'allowed_chars': text} for text in ('', 'ab', 'é漢😀')]
  cases += [
    _schema(document)
    for document in (
      {'type': 'integer'}, {'type': 'number'}, {'type': 'string'}, {},
      {'enum': ['a' * n for n in (3, 60)]}, {'const': 'a' * 61},
      {'const': 'a' * 62}, {'type': 'nothing'}, False,
      {'type': 'string', 'maxLength': 6}, {'type': 'string', 'maxLength': 7},
    )
  ]  # fmt: skip
  for _ in range(12):
    low, more = rng.integers(0, 40, 2).tolist()
    cases.append({'regex': f'x{{{low},{low + more}}}[ab]y*'})
    cases.append(_schema({'type': 'array', 'maxItems': more % 9,
                          'items': {'enum': list(range(low))}}))  # fmt: skip
  cases.append({'regex': 'a{50}b{0,9}', 'allowed_chars': 'ab'})
  return cases


@pytest.mark.slow
def test_validate_says_what_a_completion_does(model_dir, tmp_path):
  """One or the other: taken and written, or refused with the same words."""
  limits = Limits(constraint_memory=_memory(64))

  async def all():
    verdicts = []
    async with in_process(model_dir, tmp_path, limits) as service:
      for case in _cases() + _USUAL:
        said = await completions.validate(
          service, ValidateBody(**case, max_tokens=150)
        )
        try:
          body = CompletionBody(**case, max_tokens=150, temperature=0)
          await written(service, body)
          done = None
        except ApiError as e:
          done = e.status, e.message, e.param
        if said['valid']:
          assert done is None, case
        else:
          assert done == (400, said['message'], said['param']), case
        verdicts.append(said)
    return verdicts

  verdicts = asyncio.run(all())
  sizes = [v for v in verdicts if v['message'] and 'states' in v['message']]
  assert len(sizes) > 10 and sum(v['valid'] for v in verdicts) > 20
  (usual,) = [v for v in sizes if 'has 601 states' in v['message']]
  assert 'more than the 64 that' in usual['message']
  assert f'--constraint-memory={_memory(601)}' in usual['message']
  assert usual['param'] == 'regex'


@pytest.mark.slow
def test_who_waits_for_room_is_served(model_dir, tmp_path):
  """Twelve with constraints of which the tables hold one, and free text."""
  patterns = [f'{c}{{382}}' for c in 'abcdefghijkl']
  limits = Limits(constraint_memory=_memory(400), max_wait=1000)

  async def all():
    async with in_process(model_dir, tmp_path, limits, slots=4) as service:
      bodies = [CompletionBody(regex=p, max_tokens=382) for p in patterns]
      bodies.append(CompletionBody(prompt='1', max_tokens=5))
      texts = await asyncio.gather(*(written(service, b) for b in bodies))
      assert not service.running._engine._device.store.num_users
      return texts

  texts = asyncio.run(all())
  assert [text for (text,) in texts[:-1]] == [p[0] * 382 for p in patterns]


@pytest.mark.slow
def test_the_usual_ones_are_taken_by_default(server):
  for case in _USUAL:
    status, _, body = server.ask('/validate', case)
    assert (status, json.loads(body)['valid']) == (200, True)
    found = server.complete(**case, max_tokens=40, seed=1)
    assert found['choices'][0]['finish_reason']
  assert server.metric('craft_constraint_states') == (
    Capacity(CONSTRAINT_MEMORY, BYTES).most
  )


@pytest.mark.slow
def test_a_larger_one_names_the_limit_and_the_flag(start_server):
  server = start_server(f'--constraint-memory={_memory(511)}', '--slots=2')
  for path in ('/v1/completions', '/validate'):
    for more in ({}, {'stream': True}) if path != '/validate' else ({},):
      asked = {'regex': 'a{0,600}', 'max_tokens': 9} | more
      status, _, body = server.ask(path, asked)
      message = body.decode()
      assert status == (200 if path == '/validate' else 400)
      assert 'more than the 511' in message
      assert f'--constraint-memory={_memory(601)}' in message
