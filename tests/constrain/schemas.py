"""Random schemas, each with a maker of instances."""

import string

# Patterns and a text that each finds, as JSON schema searches.
_PATTERNS = [
  ('^[a-z]{2,5}$', 'abc'),
  ('^(foo|bar)-[0-9]+$', 'foo-12'),
  ('x', 'axb'),
  ('^a|b$', 'ccb'),
  (r'^\S+@\S+$', 'a@b'),
  ('^["\\\\]+$', '\\"'),
  (r'^[^a-z\n]*$', 'É 漢'),
]
_FORMATS = {
  'date': '2024-02-29',
  'time': '23:59:59.5Z',
  'date-time': '1999-12-31T00:00:00+01:30',
  'uuid': '01234567-89ab-cdef-0123-456789abcdef',
  'email': "o'neil.x@mail-1.example.org",
  'ipv4': '255.0.10.199',
  'ipv6': 'fe80:0:0:0:1:2:3:ffff',
}
_CONSTANTS = [
  *[0, -1, 1.5, True, None, '', 'a"b', 'né\n', [], {}],
  [1, [2]],
  {'k': [None, {'x': 'y'}]},
]
_LETTERS = [*string.ascii_lowercase, *'"\\ \n\té漢😀/']


def random_schema(rng, depth=3):
  """A schema, and `make(rng)` that gives an instance of it."""
  makers = [_string, _text, _integer, _number, _values, _simple]
  if depth:
    makers += [_object, _object, _array, _any_of, _types, _reference]
  return makers[rng.integers(len(makers))](rng, depth)


def _word(rng, low, high):
  length = rng.integers(low, high + 1)
  return ''.join(rng.choice(_LETTERS, length))


def _string(rng, depth):
  low = int(rng.integers(0, 4))
  high = low + int(rng.integers(0, 12))
  schema = {'type': 'string', 'title': 'ignored'}
  if rng.random() < 0.5:
    schema['minLength'] = low
  else:
    low = 0
  if rng.random() < 0.5:
    schema['maxLength'] = high
  return schema, lambda rng: _word(rng, low, high)


def _text(rng, depth):
  if rng.random() < 0.5:
    pattern, example = _PATTERNS[rng.integers(len(_PATTERNS))]
    bounds = {'minLength': 1, 'maxLength': 9} if rng.random() < 0.5 else {}
    return {'type': 'string', 'pattern': pattern} | bounds, lambda rng: example
  name = str(rng.choice(list(_FORMATS)))
  return {'type': 'string', 'format': name}, lambda rng: _FORMATS[name]


def _integer(rng, depth):
  low = int(rng.integers(-2000, 2000))
  high = low + int(rng.integers(5, 3000))
  schema = {'type': 'integer'}
  factor = 1
  if rng.random() < 0.3:
    schema['multipleOf'] = factor = int(rng.integers(1, 5))
  if rng.random() < 0.5:
    schema['minimum'] = low
    schema['maximum'] = high
  else:
    schema['exclusiveMinimum'] = low - 0.5
    schema['exclusiveMaximum'] = high + 1

  def make(rng):
    return int(rng.integers(-(-low // factor), high // factor + 1)) * factor

  return schema, make


def _number(rng, depth):
  low = round(float(rng.uniform(-50, 50)), 2)
  high = round(low + float(rng.uniform(0.5, 200)), 3)
  schema = {'type': 'number'}
  schema['minimum' if rng.random() < 0.5 else 'exclusiveMinimum'] = low
  schema['maximum' if rng.random() < 0.5 else 'exclusiveMaximum'] = high
  middle = (low + high) / 2
  return schema, lambda rng: round(float(rng.normal(middle, 0.01)), 4)


def _values(rng, depth):
  count = rng.integers(1, 5)
  values = [_CONSTANTS[k] for k in rng.integers(0, len(_CONSTANTS), count)]
  if rng.random() < 0.3:
    return {'const': values[0]}, lambda rng: values[0]
  return {'enum': values}, lambda rng: values[rng.integers(count)]


def _simple(rng, depth):
  name = str(rng.choice(['boolean', 'null']))
  choices = {'boolean': [True, False], 'null': [None, None]}[name]
  return {'type': name}, lambda rng: choices[rng.integers(2)]


def _object(rng, depth):
  parts = {
    f'{_word(rng, 0, 2)}{k}': random_schema(rng, depth - 1)
    for k in range(rng.integers(0, 5))
  }
  required = [name for name in parts if rng.random() < 0.5]
  schema = {
    'type': 'object',
    'properties': {name: part for name, (part, _) in parts.items()},
    'required': required,
    'additionalProperties': bool(rng.random() < 0.5),
  }

  def make(rng):
    return {
      name: make_part(rng)
      for name, (_, make_part) in parts.items()
      if name in required or rng.random() < 0.5
    }

  return schema, make


def _array(rng, depth):
  items, make_item = random_schema(rng, depth - 1)
  low = int(rng.integers(0, 3))
  high = low + int(rng.integers(0, 3))
  schema = {'type': 'array', 'items': items, 'minItems': low}
  if rng.random() < 0.7:
    schema['maxItems'] = high

  def make(rng):
    return [make_item(rng) for _ in range(rng.integers(low, high + 1))]

  return schema, make


def _any_of(rng, depth):
  parts = [random_schema(rng, depth - 1) for _ in range(rng.integers(1, 4))]
  schema = {'anyOf': [part for part, _ in parts]}
  return schema, lambda rng: parts[rng.integers(len(parts))][1](rng)


def _types(rng, depth):
  schema = {'type': ['string', 'null', 'integer'], 'maxLength': 3, 'minimum': 7}
  choices = [None, 7, 'abc', '', 10**9]
  return schema, lambda rng: choices[rng.integers(len(choices))]


def _reference(rng, depth):
  """A schema that `with_definitions` has to complete."""
  part, make = random_schema(rng, 0)
  return {'$ref': '#/$defs/~', '$defs': part}, make


def with_definitions(schema):
  """The schema with its `_reference`s pointing into one `$defs`."""
  definitions = {}

  def walk(part):
    if isinstance(part, list):
      return [walk(item) for item in part]
    if not isinstance(part, dict):
      return part
    if part.get('$ref') == '#/$defs/~':
      name = f'n/{len(definitions)}'
      definitions[name] = part['$defs']
      return {'$ref': f'#/$defs/{name.replace("/", "~1")}'}
    return {name: walk(item) for name, item in part.items()}

  return walk(schema) | {'$defs': definitions}


_JUNK = [
  *[None, True, 3, -1, 1.5, 'x', '#', 'string', [], {}, [1], {'a': 1}, '('],
  *[10**40, [['a']], ['a', 'a'], {'type': 'integer'}, '#/$defs/n~10', -0.0],
]
_NAMES = [
  *['minimum', 'type', 'const', 'oneOf', 'pattern', 'required', 'items'],
  *['format', 'multipleOf', 'anyOf', 'enum', 'additionalProperties'],
]


def damaged(rng, value):
  """The JSON value with some parts and names exchanged."""
  if rng.random() < 0.12:
    return _JUNK[rng.integers(len(_JUNK))]
  if isinstance(value, list):
    return [damaged(rng, item) for item in value]
  if not isinstance(value, dict):
    return value
  return {
    _NAMES[rng.integers(len(_NAMES))] if rng.random() < 0.06 else name: damaged(
      rng, item
    )
    for name, item in value.items()
  }
