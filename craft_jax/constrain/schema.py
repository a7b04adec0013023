"""Parses JSON schemas into syntax trees.

Instances are compact JSON with properties in the order of the schema. Every
keyword is enforced, is an annotation, or is an error that names it.
docs/constraints.md has the table.
"""

from collections.abc import Mapping
from typing import Any

from craft_jax.constrain.budget import Budget
from craft_jax.constrain.document import (
  JSON_TYPES,
  at,
  count_bounds,
  decimal,
  dump,
  escape,
  fail,
  has_type,
  resolve,
  show,
  types_of,
)
from craft_jax.constrain.nodes import (
  EMPTY,
  Choice,
  Graph,
  Node,
  Repeat,
  choice,
  concat,
  literal,
)
from craft_jax.constrain.numeric import Bound, numbers
from craft_jax.constrain.overlap import check_disjoint
from craft_jax.constrain.spelling import require
from craft_jax.constrain.strings import ANY_STRING, FORMATS, string, to_graph
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import hint

FREE_DEPTH = 3  # nesting of arrays and objects where any JSON is allowed
MAX_LEVELS = 32  # nesting of schemas

_ANNOTATIONS = frozenset({
  '$schema', '$comment', '$defs', 'definitions', 'title',
  'description', 'default', 'discriminator', 'examples', 'deprecated',
  'readOnly', 'writeOnly',
})  # fmt: skip
_NUMBER_KEYWORDS = (
  'minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf',
)  # fmt: skip
_KEYWORDS_OF = {
  'object': ('properties', 'required', 'additionalProperties'),
  'array': ('items', 'minItems', 'maxItems', 'uniqueItems'),
  'string': ('minLength', 'maxLength', 'pattern', 'format'),
  'number': _NUMBER_KEYWORDS,
  'integer': _NUMBER_KEYWORDS,
  'boolean': (),
  'null': (),
}
# Keywords that must be alone in a schema, but for `type` beside values.
_WHOLE = ('$ref', 'anyOf', 'oneOf', 'const', 'enum')
_KNOWN = {
  *_WHOLE,
  'type',
  *(name for names in _KEYWORDS_OF.values() for name in names),
}

_REMEDIES = {
  'nullable': 'use type: [.., "null"]',
  '$id': 'use it at the top only',
  'allOf': 'write its parts as one schema',
}


def parse(document: Any, vocabulary: Vocabulary, budget: Budget) -> Node:
  """Parses a schema into the expression of its instances.

  Args:
    document: a schema that `check_document` has accepted.
    vocabulary: vocabulary that has to cover property names and constants.
    budget: budget of the compilation.

  Raises:
    UserError: the schema is invalid or has an unsupported keyword; names the
      place as a JSON pointer.
  """
  return _Reader(document, vocabulary, budget).node(document, '#', 0)


class _Reader:
  """A parser of one document; places are JSON pointers."""

  def __init__(self, document: Any, vocabulary: Vocabulary, budget: Budget):
    self._document = document
    self._vocabulary = vocabulary
    self._budget = budget
    self._open_refs: list[str] = []
    self._of_ref: dict[str, Node] = {}
    # Cached because many numbers have equal bounds and are slow to build.
    self._of_numbers: dict[Any, Graph] = {}

  def node(self, schema: Any, place: str, level: int) -> Node:
    """Parses any schema."""
    self._budget.spend(100)
    if level > MAX_LEVELS:
      fail(place, f'schemas nest deeper than {MAX_LEVELS}', 'use fewer levels')
    if isinstance(schema, bool):
      return self._free(FREE_DEPTH) if schema else Choice(())
    if not isinstance(schema, dict):
      fail(place, f'{show(schema)} is not a schema', 'give an object')
    ignored = _ANNOTATIONS | ({'$id'} if place == '#' else set())
    used = [name for name in schema if name not in ignored]
    for name in used:
      if name not in _KNOWN:
        what = f'keyword {name!r} is not supported{hint(name, _KNOWN)}'
        fail(place, what, _REMEDIES.get(name, 'use other keywords'))
    if not used:
      return self._free(FREE_DEPTH)
    for name in _WHOLE:
      if name in schema:
        return self._whole(name, schema, used, place, level)
    return self._typed(schema, used, place, level)

  def _whole(
    self,
    name: str,
    schema: Mapping[str, Any],
    used: list[str],
    place: str,
    level: int,
  ) -> Node:
    """Parses a schema with one of the keywords in `_WHOLE`."""
    beside = {name, 'type'} if name in ('const', 'enum') else {name}
    for other in used:
      if other not in beside:
        what = f'{other!r} beside {name!r} is not supported'
        fail(place, what, 'put it inside')
    value, where = schema[name], f'{place}/{name}'
    if name == '$ref':
      return self._reference(value, where, level)
    if name == 'const':
      return self._values([value], schema, where)
    if not isinstance(value, list) or not value:
      fail(
        where, f'{show(value)} is not a list of options', 'give at least one'
      )
    if name == 'enum':
      return self._values(value, schema, where)
    options = [
      self.node(option, f'{where}/{k}', level + 1)
      for k, option in enumerate(value)
    ]
    if name == 'oneOf':
      check_disjoint(value, self._document, where, self._budget)
    return choice(*options)

  def _reference(self, ref: Any, where: str, level: int) -> Node:
    target = resolve(self._document, ref, where)
    if ref in self._open_refs:
      fail(
        where,
        f'{show(ref)} contains itself',
        'write out as many levels as needed',
      )
    if ref not in self._of_ref:
      self._open_refs.append(ref)
      self._of_ref[ref] = self.node(target, ref, level + 1)
      self._open_refs.pop()
    return self._of_ref[ref]

  def _values(
    self, values: list[Any], schema: Mapping[str, Any], where: str
  ) -> Node:
    """Any of the listed values that has the schema's type, if it has one."""
    if 'type' in schema:
      types = types_of(schema['type'], where)
      values = [v for v in values if any(has_type(v, t) for t in types)]
      if not values:
        fail(where, 'no value has the type', 'change the values or the type')
    return choice(*(self._literal(dump(v), where) for v in values))

  def _typed(
    self,
    schema: Mapping[str, Any],
    used: list[str],
    place: str,
    level: int,
  ) -> Node:
    """Parses a schema with a `type` and keywords of that type."""
    if 'type' not in schema:
      what = f'{used[0]!r} needs a type'
      fail(place, what, f'add one of {", ".join(JSON_TYPES)}')
    types = types_of(schema['type'], f'{place}/type')
    allowed = {name for kind in types for name in _KEYWORDS_OF[kind]}
    for name in used:
      if name != 'type' and name not in allowed:
        what = f'{name!r} does not apply to {" or ".join(types)}'
        fail(place, what, 'remove it, or change the type')
    return choice(*(self._of_type(t, schema, place, level) for t in types))

  def _of_type(
    self, kind: str, schema: Mapping[str, Any], place: str, level: int
  ) -> Node:
    if kind == 'object':
      return self._object(schema, place, level)
    if kind == 'array':
      return self._array(schema, place, level)
    if kind == 'string':
      return self._string(schema, place)
    if kind == 'boolean':
      return choice(self._literal('true', place), self._literal('false', place))
    if kind == 'null':
      return self._literal('null', place)
    return self._number(kind, schema, place)

  def _object(self, schema: Mapping[str, Any], place: str, level: int) -> Node:
    properties = schema.get('properties', {})
    required = schema.get('required', [])
    if not isinstance(properties, dict):
      fail(f'{place}/properties', 'this is not an object', 'give schemas')
    if not isinstance(required, list):
      fail(f'{place}/required', 'this is not a list', 'give names')
    for name in required:
      if not isinstance(name, str) or name not in properties:
        known = hint(str(name), properties)
        what = f'{show(name)} is not in properties{known}'
        fail(f'{place}/required', what, 'declare it, with a schema')
    where = f'{place}/additionalProperties'
    extra = schema.get('additionalProperties', True)
    if 'properties' not in schema and extra is not False:
      value = self.node(extra, where, level + 1)
      return self._map(value, place)
    if not isinstance(extra, bool):
      what = 'a schema beside properties is not supported'
      fail(where, what, 'use true or false: none is written')
    return self._members(properties, required, place, level)

  def _members(
    self,
    properties: Mapping[str, Any],
    required: list[str],
    place: str,
    level: int,
  ) -> Node:
    """An object of declared properties in their order.

    Before property k the place in the graph is 3k if no property is written
    yet, else 3k + 1; place 3k + 2 is between its name and its value.
    """
    edges: list[tuple[int, Node, int]] = []
    comma = self._literal(',', place)
    for k, (name, schema) in enumerate(properties.items()):
      where = f'{place}/properties/{escape(name)}'
      key = self._literal(f'{dump(name)}:', where)
      value = self.node(schema, where, level + 1)
      edges.append((3 * k, key, 3 * k + 2))
      edges.append((3 * k + 1, concat(comma, key), 3 * k + 2))
      edges.append((3 * k + 2, value, 3 * k + 4))
      if name not in required:
        edges.append((3 * k, EMPTY, 3 * k + 3))
        edges.append((3 * k + 1, EMPTY, 3 * k + 4))
    last = 3 * len(properties)
    ends = (last, last + 1) if edges else (0,)
    return self._enclosed('{', Graph(tuple(edges), ends), '}', place)

  def _map(self, value: Node, place: str) -> Node:
    """An object with any property names."""
    member = concat(ANY_STRING, self._literal(':', place), value)
    return self._enclosed('{', self._list(member, 0, None, place), '}', place)

  def _array(self, schema: Mapping[str, Any], place: str, level: int) -> Node:
    if schema.get('uniqueItems', False) is not False:
      what = 'different items cannot be enforced'
      fail(f'{place}/uniqueItems', what, 'remove it')
    least, most = count_bounds(schema, 'minItems', 'maxItems', place)
    item: Node = EMPTY
    if most != 0:
      item = self.node(schema.get('items', True), f'{place}/items', level + 1)
    return self._enclosed('[', self._list(item, least, most, place), ']', place)

  def _list(self, item: Node, least: int, most: int | None, place: str) -> Node:
    """Items with commas between them."""
    if most == 0:
      return EMPTY
    comma = self._literal(',', place)
    if most is None:
      # All items that are not required share one copy.
      some: Node = Graph(((0, item, 1), (1, comma, 0)), (1,))
      first = max(least - 1, 0)
      some = concat(Repeat(concat(item, comma), first, first), some)
    else:
      more = Repeat(concat(comma, item), max(least - 1, 0), most - 1)
      some = concat(item, more)
    return some if least else choice(EMPTY, some)

  def _string(self, schema: Mapping[str, Any], place: str) -> Node:
    least, most = count_bounds(schema, 'minLength', 'maxLength', place)
    pattern = schema.get('pattern')
    if 'pattern' in schema and not isinstance(pattern, str):
      fail(f'{place}/pattern', f'{show(pattern)} is not a string', 'quote it')
    name = schema.get('format')
    known = isinstance(name, str) and name in FORMATS
    if 'format' in schema and not known:
      what = f'format {show(name)} is not supported{hint(str(name), FORMATS)}'
      fail(f'{place}/format', what, f'use one of {", ".join(FORMATS)}')
    return string(least, most, pattern, name, place, self._budget)

  def _number(self, kind: str, schema: Mapping[str, Any], place: str) -> Node:
    values = {name: schema[name] for name in _NUMBER_KEYWORDS if name in schema}
    for name, value in values.items():
      if isinstance(value, bool) or not isinstance(value, int | float):
        fail(f'{place}/{name}', f'{show(value)} is not a number', 'give one')
    factor = values.pop('multipleOf', None)
    if factor is not None and (factor <= 0 or factor != int(factor)):
      what = f'{show(factor)} cannot be enforced exactly'
      fail(f'{place}/multipleOf', what, 'use a whole number over 0')
    whole = kind == 'integer' or factor is not None
    bounds = {
      name: Bound(decimal(value, whole), name.startswith('exclusive'))
      for name, value in values.items()
    }
    lower = [bounds[n] for n in ('minimum', 'exclusiveMinimum') if n in bounds]
    upper = [bounds[n] for n in ('maximum', 'exclusiveMaximum') if n in bounds]
    least = max(lower, key=lambda b: (b.value, b.strict), default=None)
    most = min(upper, key=lambda b: (b.value, not b.strict), default=None)
    wanted = (least, most, whole, int(factor or 1))
    if wanted not in self._of_numbers:
      machine = numbers(*wanted, self._budget)
      self._of_numbers[wanted] = to_graph(machine)
    if not self._of_numbers[wanted].ends:
      fail(place, 'no number that can be written is in range', 'widen it')
    return self._of_numbers[wanted]

  def _free(self, depth: int) -> Node:
    """Any JSON with arrays and objects nested at most `depth` deep."""
    scalars = [
      ANY_STRING,
      self._number('number', {}, '#'),
      *(self._literal(word, '#') for word in ('true', 'false', 'null')),
    ]
    if not depth:
      return choice(*scalars)
    inner = self._free(depth - 1)
    array = self._enclosed('[', self._list(inner, 0, None, '#'), ']', '#')
    return choice(*scalars, array, self._map(inner, '#'))

  def _enclosed(self, left: str, body: Node, right: str, place: str) -> Node:
    return concat(self._literal(left, place), body, self._literal(right, place))

  def _literal(self, text: str, place: str) -> Node:
    """A node that matches a text, which the vocabulary has to cover."""
    self._budget.spend(len(text))
    require(text, self._vocabulary, at(place))
    return literal(text)
