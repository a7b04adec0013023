"""The largest bodies that a server takes, each of a kind that could cost much.

Names, and the path and the text of each.
"""

MOST = 1 << 20  # bytes of a body


def _filled(before, item, after, between=','):
  """As many items as a body may have."""
  room = MOST - len(before) - len(after)
  return before + between.join([item] * (room // len(item + between))) + after


def _numbered(before, item, after):
  """The same of items that have each a number."""
  count = (MOST - len(before) - len(after)) // (len(item) + 6)
  return before + ','.join(item % i for i in range(count)) + after


def _schema(text):
  form = '{"type":"json_schema","json_schema":{"schema":%s}}'
  return '{"response_format":' + form % text + '}'


def _in_schema(before, item, after, fill=_filled):
  inner = fill(before + ' ' * 160, item, after)
  return _schema(inner.replace(' ' * 160, '', 1))


_BIG = 'x' * (MOST - 300)
_COMPLETIONS = {
  'ids, the last a text': _filled('{"prompt":[', '1', ',"a"]}'),
  'fractions': _filled('{"prompt":[', '1.5', ']}'),
  'negative ids': _filled('{"prompt":[', '-1', ']}'),
  'ids too large': _filled('{"prompt":[', '99999999999', ']}'),
  'ids': _filled('{"prompt":[', '1', ']}'),
  'ids of no token': _filled('{"max_tokens":1,"prompt":[', '9999', ']}'),
  'lists of ids': _filled('{"prompt":[', '[1]', ']}'),
  'lists of texts': _filled('{"prompt":[', '["a"]', ']}'),
  'empty lists': _filled('{"prompt":[', '[]', ']}'),
  'objects': _filled('{"prompt":[', '{}', ']}'),
  'nulls': _filled('{"prompt":[', 'null', ']}'),
  'booleans': _filled('{"prompt":[', 'true', ']}'),
  'texts': _filled('{"prompt":[', '""', ']}'),
  'texts, the last an id': _filled('{"prompt":[', '"a"', ',1]}'),
  'long numbers': _filled('{"prompt":[', '9' * 4000, ']}'),
  'long fractions': _filled('{"prompt":[', '.'.join(['9' * 2000] * 2), ']}'),
  'infinities': _filled('{"prompt":[', '1e999', ']}'),
  'a text': f'{{"prompt":"{_BIG}","max_tokens":1}}',
  'escapes': _filled('{"prompt":"', '\\u00e9', '"}', ''),
  'half a pair at the end': _filled('{"prompt":["', 'a', '\\ud800"]}', '","'),
  'half pairs': _filled('{"prompt":"', '\\ud800', '"}', ''),
  'unknown fields': _numbered('{', '"k%d":1', '}'),
  'an unknown field': f'{{"{_BIG}":1}}',
  'one field again and again': _filled('{', '"n":1', '}'),
  'biases': _numbered('{"logit_bias":{', '"%d":1', '}}'),
  'biases that are texts': _numbered('{"logit_bias":{', '"%d":"a"', '}}'),
  'biases of no ids': _numbered('{"logit_bias":{', '"x%d":1', '}}'),
  'a bias of a long name': f'{{"logit_bias":{{"{_BIG}":1}}}}',
  'a bias of a long number': f'{{"logit_bias":{{"{"1" * (MOST - 99)}":1}}}}',
  'stops': _filled('{"stop":[', '"a"', ']}'),
  'stops that are ids': _filled('{"stop":[', '1', ']}'),
  'a stop': f'{{"stop":"{_BIG}","max_tokens":2}}',
  'a model': f'{{"model":"{_BIG}"}}',
  'a user': f'{{"user":"{_BIG}","max_tokens":1}}',
  'an unknown type': f'{{"response_format":{{"type":"{_BIG}"}}}}',
  'deep lists': '{"prompt":' + '[' * 500_000 + ']' * 500_000 + '}',
  'deep objects': '{"a":' * 140_000 + '1' + '}' * 140_000,
  'no end': _filled('{"prompt":[', '[', ''),
  'spaces': ' ' * (MOST - 2) + '{}',
  'no JSON': '"' + _BIG,
  'no object': _filled('[', '1', ']'),
  'characters': f'{{"allowed_chars":"{_BIG}","max_tokens":1}}',
  'a pattern': f'{{"regex":"{_BIG}","max_tokens":1}}',
  'a pattern of choices': _filled('{"regex":"', 'ab', '"}', '|'),
  'a pattern of groups': _filled('{"regex":"', '(a', '"}', ''),
  'a class': _filled('{"regex":"[', 'ab', ']"}', '-'),
  'schema: values': _in_schema('{"enum":[', '"a%d"', ']}', _numbered),
  'schema: infinities': _in_schema('{"enum":[', '1e999', ']}'),
  'schema: objects': _in_schema('{"enum":[', '{}', ']}'),
  'schema: properties': _in_schema(
    '{"type":"object","properties":{', '"p%d":{}', '}}', _numbered
  ),
  'schema: keywords': _in_schema('{', '"k%d":1', '}', _numbered),
  'schema: a keyword': _schema(f'{{"{_BIG}":1}}'),
  'schema: a reference among many': _in_schema(
    '{"$ref":"#/$defs/a","$defs":{', '"a%d":{}', '}}', _numbered
  ),
  'schema: types': _in_schema('{"type":[', '"string"', ']}'),
  'schema: a type': _schema(f'{{"type":"{_BIG}"}}'),
  'schema: a format': _schema(f'{{"type":"string","format":"{_BIG}"}}'),
  'schema: required': _in_schema(
    '{"type":"object","required":[', '"r%d"', ']}', _numbered
  ),
}  # fmt: skip
_OTHERS = {
  'messages': ('/v1/chat/completions', _filled('{"messages":[', '{}', ']}')),
  'messages of a role': (
    '/v1/chat/completions',
    _filled('{"messages":[', '{"role":"user","content":"a"}', ']}'),
  ),
  'fields of a message': (
    '/v1/chat/completions', _numbered('{"messages":[{', '"k%d":1', '}]}')
  ),
  'parts': (
    '/v1/chat/completions',
    _filled('{"messages":[{"role":"user","content":[', '{}', ']}]}'),
  ),
  'blank lines': (
    '/v1/chat/completions',
    _filled('{"messages":[{"role":"user","content":"', '\\n ', '"}]}', ''),
  ),
  'a name': (
    '/v1/chat/completions',
    f'{{"messages":[{{"role":"user","content":"","name":"{_BIG}"}}]}}',
  ),
  'negative tokens': ('/detokenize', _filled('{"tokens":[', '-1', ']}')),
  'tokens': ('/detokenize', _filled('{"tokens":[', '97', ']}')),
  'a text to tokenize': ('/tokenize', f'{{"prompt":"{_BIG}"}}'),
  'a text to score': ('/score', f'{{"text":"{_BIG}"}}'),
  'texts to score': ('/score', _filled('{"text":[', '"a"', ']}')),
  'each character': (
    '/score', '{"text":"%s","per_char":true,"stride":64}' % ('a ' * 60_000)
  ),
  'an echo': (
    '/v1/completions',
    '{"prompt":"%s","echo":true,"logprobs":5,"max_tokens":1}' % ('a' * 60_000),
  ),
  'an echo as a stream': (
    '/v1/completions',
    '{"prompt":"%s","echo":true,"logprobs":5,"max_tokens":1,"stream":true}'
    % ('a' * 60_000),
  ),
  'a pattern to validate': ('/validate', f'{{"regex":"{_BIG}"}}'),
  'fields to validate': ('/validate', _numbered('{', '"k%d":1', '}')),
}  # fmt: skip
CASES = {
  name: ('/v1/completions', text) for name, text in _COMPLETIONS.items()
} | _OTHERS
