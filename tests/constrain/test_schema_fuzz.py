"""Random schemas: what is written is valid, and what is valid is written."""

import json

import jsonschema
import numpy as np
import oracle
import pytest
import schemas

from craft_jax.constrain import compile_schema
from craft_jax.constrain.document import dump
from craft_jax.errors import UserError

_VALIDATOR = jsonschema.Draft202012Validator
_SCHEMAS, _SAMPLES = 500, 6


@pytest.mark.slow
def test_outputs_are_valid_and_instances_are_accepted(chars, byte):
  rng = np.random.default_rng(11)
  done = 0
  while done < _SCHEMAS:
    schema, make = schemas.random_schema(rng)
    schema = schemas.with_definitions(schema)
    validator = _VALIDATOR(schema, format_checker=_VALIDATOR.FORMAT_CHECKER)
    vocabulary = (chars, byte)[done % 2]
    try:
      automaton = compile_schema(schema, vocabulary)
    except UserError as e:
      assert 'too large' in str(e), schema
      continue
    done += 1
    for _ in range(_SAMPLES):
      text = vocabulary.decode(oracle.random_text(automaton, rng))
      value = json.loads(text)
      assert validator.is_valid(value), (schema, text)
      assert '\n' not in text
    for _ in range(_SAMPLES):
      value = make(rng)
      assert validator.is_valid(value), (schema, value)
      if _can_be_written(value, vocabulary):
        ids = vocabulary.encode(dump(value))
        assert automaton.accepts(ids), (schema, dump(value))


@pytest.mark.slow
def test_any_document_is_a_schema_or_an_error(chars):
  """Schemas with parts exchanged; of those taken, outputs are valid."""
  rng = np.random.default_rng(12)
  taken = 0
  for _ in range(300):
    schema, _ = schemas.random_schema(rng, depth=2)
    schema = schemas.damaged(rng, schemas.with_definitions(schema))
    try:
      automaton = compile_schema(schema, chars)
    except UserError as e:
      assert '\n' not in str(e)
      continue
    taken += 1
    validator = _VALIDATOR(schema, format_checker=_VALIDATOR.FORMAT_CHECKER)
    for _ in range(3):
      text = chars.decode(oracle.random_text(automaton, rng))
      assert validator.is_valid(json.loads(text)), (schema, text)
  assert taken > 50


def _can_be_written(value, vocabulary):
  return vocabulary.kind == 'byte' or set(dump(value)) <= set(vocabulary.chars)
