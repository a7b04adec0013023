"""JSON schema, keyword by keyword, and its errors."""

import json

import jsonschema
import pytest

from craft_jax.constrain import compile_schema
from craft_jax.constrain.document import dump
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError

_REF = {'$defs': {'a/b~c': {'type': 'integer'}}}
_TAGGED = {
  'oneOf': [
    {
      'type': 'object',
      'properties': {'kind': {'const': kind}, 'x': {'type': 'integer'}},
      'required': ['kind'],
    }
    for kind in ('a', 'b')
  ]
}
_PAIR = {
  'type': 'object',
  'properties': {'a': {'type': 'null'}, 'b': {'const': 1}, 'c': {'const': 2}},
  'required': ['b'],
}


@pytest.mark.parametrize(
  ('schema', 'yes', 'no'),
  [
    ({'type': 'null'}, ['null'], ['', 'nul', ' null']),
    ({'type': 'boolean'}, ['true', 'false'], ['True', '0']),
    ({'type': 'integer'}, ['0', '-7', '120'], ['-0', '01', '1.0', '1e3', '+1']),
    ({'type': 'number'}, ['0', '-0.5', '3.25'], ['.5', '1.', '-0', '-0.0']),
    ({'type': 'string'}, ['""', '"a\\n\\"é"'], ['"\n"', '"\\/"', '"\\u0061"']),
    (_PAIR, ['{"b":1}', '{"a":null,"b":1,"c":2}'], ['{}', '{"b":1,"a":null}']),
    (_PAIR, ['{"b":1,"c":2}'], ['{"b":1,}', '{,"b":1}', '{"b": 1}']),
    ({'type': 'object', 'properties': {}}, ['{}'], ['{"a":1}']),
    ({'type': 'object', 'additionalProperties': False}, ['{}'], ['{"a":1}']),
    ({'type': 'object'}, ['{}', '{"a":{"b":[]},"":1}'], ['{"a"}', '[]']),
    (
      {'type': 'object', 'additionalProperties': {'type': 'null'}},
      ['{}', '{"é":null,"b":null}'],
      ['{"a":1}'],
    ),
    ({'type': 'array'}, ['[]', '[1,"a",[null,{}]]'], ['[1,]', '[,1]']),
    (
      {'type': 'array', 'items': {'const': 1}, 'minItems': 1, 'maxItems': 3},
      ['[1]', '[1,1,1]'],
      ['[]', '[1,1,1,1]', '[2]'],
    ),
    (
      {'type': 'array', 'items': {'const': 1}, 'minItems': 2},
      ['[1,1]', '[1,1,1,1]'],
      ['[]', '[1]'],
    ),
    ({'type': 'array', 'items': False, 'uniqueItems': False}, ['[]'], ['[1]']),
    ({'type': 'array', 'items': False, 'maxItems': 0}, ['[]'], ['[1]']),
    (
      {'type': 'string', 'minLength': 2, 'maxLength': 3},
      ['"ab"', '"a\\\\b"', '"😀é漢"'],
      ['"a"', '"abcd"'],
    ),
    (
      {'type': 'string', 'pattern': '^a|b$', 'maxLength': 3},
      ['"a"', '"xxb"', '"axx"'],
      ['"x"', '"xbx"', '"axxx"'],
    ),
    ({'type': 'string', 'pattern': 'a$'}, ['"ba"'], ['"a\\n"']),
    ({'type': 'string', 'pattern': '^\\s$'}, ['" "', '"\\t"'], ['"a"']),
    (
      {'enum': ['a', 1, None, {'k': [1.5]}]},
      ['"a"', '1', 'null', '{"k":[1.5]}'],
      ['"b"', 'a', '{"k": [1.5]}'],
    ),
    ({'const': 'é"\n'}, ['"é\\"\\n"'], ['"é"']),
    ({'type': 'integer', 'enum': ['a', 1, 2.0, True]}, ['1', '2.0'], ['true']),
    ({'type': ['null', 'integer'], 'minimum': 3}, ['null', '3'], ['2']),
    ({'anyOf': [{'const': 1}, {'type': 'null'}]}, ['1', 'null'], ['2']),
    (_TAGGED, ['{"kind":"a"}', '{"kind":"b","x":1}'], ['{"kind":"c"}']),
    (
      {'oneOf': [{'type': 'integer'}, {'enum': ['a']}, {'type': 'null'}]},
      ['1', '"a"', 'null'],
      ['"b"'],
    ),
    ({'$ref': '#/$defs/a~1b~0c'} | _REF, ['5'], ['"5"']),
    ({'$ref': '#/$defs/a~1b%7E0c'} | _REF, ['5'], ['"5"']),
    ({}, ['1', '[[[1]]]', '{"a":{"b":{"c":1}}}'], ['[[[[1]]]]', '']),
    (True, ['null', '[]'], ['[[[[]]]]']),
    ({'title': 'x', '$id': 'urn:x', 'default': 1}, ['"any"'], ['x']),
    ({'anyOf': [False, {'const': 1}]}, ['1'], ['2']),
  ],
)
def test_keywords(schema, yes, no, vocabulary):
  automaton = compile_schema(schema, vocabulary)
  for text in yes:
    assert automaton.accepts(vocabulary.encode(text)), text
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
  for text in no:
    assert not automaton.accepts(vocabulary.encode(text)), text


def _object(**properties):
  return {'type': 'object', 'properties': properties}


@pytest.mark.parametrize(
  ('schema', 'message'),
  [
    ({'type': 'string', 'maxLenght': 3}, "#: keyword 'maxLenght' is not supp"),
    (_object(a={'allOf': [{}]}), "#/properties/a: keyword 'allOf' is not"),
    (_object(a={'not': {}}), "#/properties/a: keyword 'not' is not"),
    ({'type': 'string', 'nullable': True}, 'use type: [.., "null"]'),
    ({'type': 'array', 'contains': {}}, "keyword 'contains'"),
    ({'type': 'array', 'prefixItems': []}, "keyword 'prefixItems'"),
    ({'type': 'array', 'uniqueItems': True}, '#/uniqueItems: different items'),
    ({'type': 'object', 'patternProperties': {}}, "'patternProperties'"),
    ({'type': 'object', 'minProperties': 1}, "keyword 'minProperties'"),
    (_object(a={'$id': 'urn:x'}), "#/properties/a: keyword '$id'"),
    ({'minLength': 3}, "'minLength' needs a type"),
    ({'type': 'integer', 'minLength': 3}, "'minLength' does not apply to int"),
    ({'type': 'text'}, '#/type: "text" is not a type'),
    ({'type': []}, 'the list of types is empty'),
    ({'type': 'string', 'format': 'uri'}, 'format "uri" is not supported'),
    ({'type': 'string', 'pattern': '(?=a)'}, '#/pattern: look-ahead'),
    ({'type': 'string', 'pattern': 3}, '#/pattern: 3 is not a string'),
    ({'type': 'string', 'minLength': -1}, '#/minLength: -1 is not a count'),
    ({'type': 'string', 'minLength': 2, 'maxLength': 1}, 'is over maxLength'),
    ({'type': 'array', 'minItems': True}, '#/minItems: true is not a count'),
    ({'type': 'number', 'multipleOf': 0.01}, '0.01 cannot be enforced exactly'),
    ({'type': 'integer', 'multipleOf': 0}, '0 cannot be enforced'),
    ({'type': 'number', 'minimum': '1'}, '#/minimum: "1" is not a number'),
    ({'type': 'integer', 'exclusiveMinimum': True}, 'true is not a number'),
    ({'type': 'integer', 'minimum': 3, 'maximum': 2}, 'is in range'),
    ({'type': 'number', 'minimum': 1e16}, 'is in range'),
    (_object(a=3), '#/properties/a: 3 is not a schema'),
    (
      {'type': 'object', 'properties': []},
      '#/properties: this is not an object',
    ),
    (_object(ab={}) | {'required': ['ac']}, 'not in properties, did you mean'),
    (_object(a={}) | {'required': [['a']]}, '["a"] is not in properties'),
    ({'type': 'string', 'format': []}, 'format [] is not supported'),
    (_object(a={}) | {'required': 'a'}, '#/required: this is not a list'),
    (_object(a={}) | {'additionalProperties': {}}, 'beside properties'),
    ({'enum': []}, '#/enum: [] is not a list of options'),
    ({'enum': ['a'], 'type': 'null'}, 'no value has the type'),
    ({'enum': ['a'], 'maxLength': 3}, "'maxLength' beside 'enum'"),
    ({'anyOf': [{}], 'type': 'null'}, "'type' beside 'anyOf'"),
    ({'oneOf': [{'type': 'number'}, {'type': 'integer'}]}, 'options 0 and 1'),
    ({'oneOf': [{}, {'type': 'null'}]}, 'are not known to be disjoint'),
    (
      {'oneOf': [{'const': 1}, {'enum': [2, 1.0]}]},
      'are not known to be disjoint',
    ),
    ({'oneOf': [_object(a={}), _object(b={})]}, 'are not known to be disjoint'),
    ({'$ref': 'http://x/y'}, 'is not in this schema'),
    ({'$ref': 3}, '3 is not in this schema'),
    ({'$ref': '#/$defs/ac', '$defs': {'ab': {}}}, 'refers to nothing, did you'),
    ({'$ref': '#'}, '"#" contains itself'),
    (_object(a={'$ref': '#/properties/a'}), 'contains itself'),
    (
      {'$ref': '#/$defs/a', '$defs': {'a': {'anyOf': [{'$ref': '#/$defs/a'}]}}},
      '#/$defs/a/anyOf/0/$ref: "#/$defs/a" contains itself',
    ),
    (False, 'allows no text'),
    ({'const': float('nan')}, 'a float that is not JSON'),
    ({'const': (1, 2)}, 'a tuple that is not JSON'),
    ({1: 2}, 'a dict that is not JSON'),
    ({'const': 10**90}, 'too large'),
    (_object(**{'a\n': 3}), r'#/properties/a\n: 3 is not a schema'),
    ([], '[] is not a schema'),
  ],
)
def test_errors_are_one_line_with_the_place(schema, message, chars):
  with pytest.raises(UserError) as caught:
    compile_schema(schema, chars)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_deep_and_cyclic_schemas_end_in_one_line(chars):
  schema = {}
  for _ in range(10_000):
    schema = {'type': 'array', 'items': schema}
  with pytest.raises(UserError, match='nests deeper than 100'):
    compile_schema(schema, chars)
  cyclic = {'type': 'array'}
  cyclic['items'] = cyclic
  with pytest.raises(UserError, match='nests deeper than 100'):
    compile_schema(cyclic, chars)
  with pytest.raises(UserError, match='nests deeper than 100'):
    compile_schema({'const': json.loads('[' * 900 + ']' * 900)}, chars)


def test_references_may_not_chain_or_multiply_without_end(chars):
  chain = {f'd{k}': {'$ref': f'#/$defs/d{k + 1}'} for k in range(1000)}
  with pytest.raises(UserError, match='schemas nest deeper than 32'):
    compile_schema({'$ref': '#/$defs/d0', '$defs': chain}, chars)
  doubling = {
    f'd{k}': _object(**{n: {'$ref': f'#/$defs/d{k + 1}'} for n in 'ab'})
    for k in range(15)
  }
  doubling['d15'] = {'type': 'null'}
  with pytest.raises(UserError, match='is too large'):
    compile_schema({'$ref': '#/$defs/d0', '$defs': doubling}, chars)


def test_a_vocabulary_must_have_the_names(chars):
  with pytest.raises(UserError, match=r"schema #/properties/ü: .*'ü'"):
    compile_schema(_object(ü={}), chars)
  digits = Vocabulary('char', '01234567{}')
  with pytest.raises(UserError, match="cannot write 't'"):
    compile_schema({'type': 'boolean'}, digits)
  # Sets are another matter: what can be written is.
  automaton = compile_schema({'type': 'integer', 'maximum': 9}, digits)
  assert not automaton.accepts([])
  assert automaton.accepts(digits.encode('7'))


def test_properties_keep_their_order(chars):
  names = ['z', 'a', 'm']
  schema = _object(**{name: {'type': 'null'} for name in names})
  automaton = compile_schema(schema, chars)
  value = dict.fromkeys(names)
  assert automaton.accepts(chars.encode(dump(value)))
  assert not automaton.accepts(chars.encode(dump(dict(sorted(value.items())))))


def test_order_is_part_of_the_cache_key(chars):
  one = compile_schema(_object(a={'const': 1}, b={'const': 1}), chars)
  two = compile_schema(_object(b={'const': 1}, a={'const': 1}), chars)
  text = chars.encode('{"a":1,"b":1}')
  assert one.accepts(text) and not two.accepts(text)


def test_many_optional_properties_take_one_copy_of_each_value(chars):
  schema = _object(**{f'p{k}': {'type': 'integer'} for k in range(50)})
  assert compile_schema(schema, chars).num_states < 1400
