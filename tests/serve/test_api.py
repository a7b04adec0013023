"""The completions API, against a server that runs."""

import collections
import json
import math
import re

import numpy as np
import pytest
from prometheus_client import parser

from craft_jax.inference.load import load_model
from craft_jax.inference.sampling.answers import Answers, prepare
from craft_jax.inference.sampling.request import Request
from craft_jax.inference.score import token_nats


@pytest.fixture(scope='module')
def trained(model_dir):
  return load_model(model_dir)


def texts(trained, prompt, **fields):
  """What `craft sample` writes."""
  usual = {'temperature': 1.0, 'penalty_window': 64, 'max_chars': 16}
  request = Request(prompt=prompt, **usual | fields)
  answers = Answers(trained, [prepare(trained, request)])
  list(answers)
  return [sample.text for sample in answers.samples()]


@pytest.mark.parametrize('sent, same', [
  ({}, {}),
  ({'max_tokens': 100}, {'max_chars': 100}),
  ({'temperature': 0}, {'temperature': 0}),
  ({'top_p': 0.5, 'top_k': 5, 'min_p': 0.01, 'typical_p': 0.9},
   {'top_p': 0.5, 'top_k': 5, 'min_p': 0.01, 'typical_p': 0.9}),
  ({'presence_penalty': 1, 'frequency_penalty': 0.5,
    'repetition_penalty': 1.3},
   {'presence_penalty': 1, 'frequency_penalty': 0.5,
    'repetition_penalty': 1.3}),
  ({'n': 3}, {'num_samples': 3}),
  ({'n': 2, 'best_of': 4}, {'num_samples': 2, 'best_of': 4}),
  ({'stop': ' is'}, {'stop': (' is',)}),
  ({'stop': ['0', '1', '2', 'é'], 'max_tokens': 40},
   {'stop': ('0', '1', '2', 'é'), 'max_chars': 40}),
  ({'regex': '[a-f]{3}[0-9]+'}, {'regex': '[a-f]{3}[0-9]+'}),
  ({'allowed_chars': 'abc é😀'}, {'allowed_chars': 'abc é😀'}),
  ({'beam_width': 3, 'n': 2, 'max_tokens': 6},
   {'beams': 3, 'num_samples': 2, 'max_chars': 6}),
  ({'ignore_eos': True}, {'ignore_end': True}),
  ({'logit_bias': {'101': 5.0, '44': -100}},
   {'logit_bias': {'e': 5.0, ',': -100.0}}),
  ({'response_format': {'type': 'json_schema', 'json_schema': {
    'name': 'x', 'strict': True, 'schema': {'enum': ['one', 'two', 3]}}}},
   {'json_schema': {'enum': ['one', 'two', 3]}}),
  ({'response_format': {'type': 'text'}}, {}),
  (dict.fromkeys(('temperature', 'top_p', 'n', 'stop', 'logprobs', 'suffix',
                  'best_of', 'user', 'logit_bias', 'stream_options'))
   | {'stream': False, 'echo': None}, {}),
])  # fmt: skip
def test_a_text_is_that_of_craft_sample(server, trained, sent, same):
  found = server.complete(prompt='12 squared', seed=5, **sent)
  want = texts(trained, '12 squared', seed=5, **same)
  assert [choice['text'] for choice in found['choices']] == want
  assert [c['index'] for c in found['choices']] == list(range(len(want)))
  assert found['object'] == 'text_completion'
  assert found['model'] == 'toy' == server.name
  assert all(c['finish_reason'] in ('stop', 'length') for c in found['choices'])
  usage = found['usage']
  assert usage['prompt_tokens'] == 10
  assert usage['total_tokens'] == 10 + usage['completion_tokens']


def test_several_prompts_and_ids(server, trained):
  found = server.complete(prompt=['12', '13 é'], n=2, seed=1, max_tokens=9)
  assert [c['index'] for c in found['choices']] == [0, 1, 2, 3]
  assert found['usage']['prompt_tokens'] == 2 + 5
  first = server.complete(prompt='12', n=2, seed=1, max_tokens=9)
  assert [c['text'] for c in first['choices']] == [
    c['text'] for c in found['choices'][:2]
  ]
  # The second prompt's samples are numbered on, so equal prompts differ.
  twice = server.complete(prompt=['12', '12'], seed=1, max_tokens=30)
  assert len({c['text'] for c in twice['choices']}) == 2
  ids = trained.vocabulary.encode('13 é').tolist()
  fields = {'seed': 1, 'max_tokens': 9}
  as_ids = server.complete(prompt=ids, **fields)
  assert (
    as_ids['choices'] == server.complete(prompt='13 é', **fields)['choices']
  )
  both = server.complete(prompt=[ids, ids[:2]], temperature=0, max_tokens=9)
  assert [c['text'] for c in both['choices']] == [
    texts(trained, prompt, temperature=0, max_chars=9)[0]
    for prompt in ('13 é', '13')
  ]


def test_without_a_seed_texts_differ(server):
  found = [server.complete(prompt='1', max_tokens=40) for _ in range(2)]
  assert found[0]['choices'][0]['text'] != found[1]['choices'][0]['text']
  # Any 64 bits are a seed, as OpenAI's.
  server.complete(prompt='1', seed=-(2**63))
  server.complete(prompt='1', seed=2**63 - 1)


@pytest.mark.parametrize('prompt', ['12 squared', 'é—😀', '\U0001f600'])
@pytest.mark.parametrize('echo', [False, True])
def test_logprobs(server, trained, prompt, echo):
  choice = server.complete(
    prompt=prompt, seed=3, max_tokens=12, logprobs=3, echo=echo
  )['choices'][0]
  found = choice['logprobs']
  text = choice['text'].removeprefix(prompt if echo else '')
  ids = trained.vocabulary.encode(text).tolist()
  before = trained.vocabulary.encode(prompt).tolist()
  nats = token_nats(trained.model, trained.params, np.array(before + ids))
  want = (-nats).tolist()
  want = [None, *want] if echo else want[len(before) - 1 :]
  shown = before + ids if echo else ids
  logs = found['token_logprobs'][: len(want)]  # an end may follow
  assert len(found['tokens']) - len(want) in (0, 1)
  assert logs[0] is None if echo else True
  np.testing.assert_allclose(logs[echo:], want[echo:], atol=1e-4)
  names = [chr(i) if i < 128 else f'bytes:\\x{i:02x}' for i in shown]
  assert found['tokens'][: len(names)] == names
  for token, log, top in zip(
    found['tokens'], found['token_logprobs'], found['top_logprobs'], strict=True
  ):
    if log is None:
      assert top is None
      continue
    assert top[token] == log and len(top) in (1, 3, 4)
    assert sum(map(math.exp, top.values())) <= 1.001
  # Where each token's character begins in the text, the prompt counted.
  whole = prompt + text
  starts = [i for i, char in enumerate(whole) for _ in char.encode()][
    0 if echo else len(before) :
  ]
  assert found['text_offset'][: len(starts)] == starts


@pytest.mark.parametrize(
  'ids, shown, places',
  [
    ([49, 0xC3], '1', [0, 1, 1]),  # the model has to complete it
    ([49, 0xC3, 50, 0xFF, 51], '1\ufffd2\ufffd3', [0, 1, 2, 3, 4, 5]),
    ([0xF0, 0x9F, 256, 50], '\ufffd2', [0, 0, 0, 1, 2]),
  ],
)
def test_ids_that_are_no_text(server, ids, shown, places):
  fields = {'prompt': ids, 'max_tokens': 3, 'seed': 1}
  (alone,) = server.complete(**fields)['choices']
  (echo,) = server.complete(**fields, echo=True, logprobs=0)['choices']
  assert echo['text'] == shown + alone['text']
  assert '\ufffd' not in alone['text']
  assert echo['logprobs']['text_offset'][: len(places)] == places
  # A constraint begins with a whole character.
  fields |= {'regex': '[ab]+', 'echo': True, 'logprobs': 0}
  (bound,) = server.complete(**fields)['choices']
  assert re.fullmatch(re.escape(shown) + '[ab]{1,3}', bound['text'])
  offsets = bound['logprobs']['text_offset']
  assert offsets[len(ids) :] == list(range(len(shown), len(bound['text'])))
  nothing = fields | {'max_tokens': 0, 'regex': None}
  assert server.complete(**nothing)['choices'][0]['text'] == shown


def test_no_logprobs_but_of_the_tokens(server):
  """As of OpenAI's: of k others and the one written, which are at most k+1."""
  found = server.complete(prompt='1', logprobs=0, max_tokens=4, echo=True)
  found = found['choices'][0]['logprobs']
  assert len(found['token_logprobs']) >= 5
  pairs = zip(found['tokens'], found['token_logprobs'], strict=True)
  first, *tops = found['top_logprobs']
  assert first is None
  assert tops == [{token: logprob} for token, logprob in list(pairs)[1:]]


def test_scoring_writes_nothing(server):
  found = server.complete(
    prompt='12 squared', max_tokens=0, echo=True, logprobs=1
  )
  (choice,) = found['choices']
  assert choice['text'] == '12 squared'
  assert len(choice['logprobs']['tokens']) == 10
  assert found['usage']['completion_tokens'] == 0
  alone = server.complete(prompt='', max_tokens=0, echo=True, logprobs=1)
  assert alone['choices'][0]['text'] == ''
  assert alone['choices'][0]['logprobs']['tokens'] == []


@pytest.mark.parametrize('fields', [
  {},
  {'echo': True},
  {'echo': True, 'logprobs': 2},
  {'logprobs': 5, 'n': 3},
  {'stop': [' is', 'é', '9'], 'n': 4},
  {'prompt': ['12', 'é', ''], 'n': 2},
  {'prompt': 'é'.encode()[:1].decode('latin-1')},
  {'regex': '(é|😀){2,5}', 'logprobs': 1},
  {'max_tokens': 0, 'echo': True, 'logprobs': 1},
])  # fmt: skip
def test_a_stream_is_the_whole_in_pieces(server, fields):
  fields = {'prompt': '12 sq', 'seed': 7, 'max_tokens': 70} | fields
  want = server.complete(**fields)
  events = server.stream(**fields, stream_options={'include_usage': True})
  *parts, last = events
  assert last['choices'] == [] and last['usage'] == want['usage']
  assert all(event['usage'] is None for event in parts)
  assert len({event['id'] for event in events}) == 1
  for choice in want['choices']:
    mine = [c for e in parts for c in e['choices']]
    mine = [c for c in mine if c['index'] == choice['index']]
    assert ''.join(c['text'] for c in mine) == choice['text']
    reasons = [c['finish_reason'] for c in mine]
    assert reasons == [None] * (len(mine) - 1) + [choice['finish_reason']]
    for key, value in (choice['logprobs'] or {}).items():
      assert [x for c in mine for x in c['logprobs'][key]] == value
  plain = server.stream(**fields)
  assert all('usage' not in event for event in plain)
  assert len(events) > 3 or fields['max_tokens'] == 0  # as it is written


REFUSED = [
  ({'foo': 1}, 'foo'),
  ({'suffix': 'x'}, 'suffix'),
  ({'prompt': 3}, 'prompt'),
  ({'prompt': []}, 'prompt'),
  ({'prompt': [[]]}, 'prompt'),
  ({'prompt': [-1]}, 'prompt'),
  ({'prompt': [5000]}, 'prompt'),
  ({'prompt': [1, 'x']}, 'prompt'),
  ({'prompt': [2**70]}, 'prompt'),
  ({'max_tokens': -1}, 'max_tokens'),
  ({'max_tokens': 0}, 'max_tokens'),
  ({'max_tokens': 10**6}, 'max_tokens'),
  ({'max_tokens': 2**70}, 'max_tokens'),
  ({'max_tokens': '5'}, 'max_tokens'),
  ({'max_tokens': 5.5}, 'max_tokens'),
  ({'max_tokens': True}, 'max_tokens'),
  ({'temperature': -1}, 'temperature'),
  ({'temperature': 'hot'}, 'temperature'),
  ({'top_p': 1.5}, 'top_p'),
  ({'n': 0}, 'n'),
  ({'n': 1000}, 'n'),
  ({'n': 2, 'best_of': 1}, 'best_of'),
  ({'n': 1, 'best_of': 2, 'stream': True}, 'best_of'),
  ({'stream_options': {'include_usage': True}}, 'stream_options'),
  ({'stream': True, 'stream_options': {'other': 1}}, 'stream_options'),
  ({'stop': ['a'] * 5}, 'stop'),
  ({'stop': ''}, 'stop'),
  ({'stop': [1]}, 'stop'),
  ({'logprobs': 6}, 'logprobs'),
  ({'seed': 2**64}, 'seed'),
  ({'presence_penalty': 3}, 'presence_penalty'),
  ({'logit_bias': {'x': 1}}, 'logit_bias'),
  ({'logit_bias': {'9999': 1}}, 'logit_bias'),
  ({'logit_bias': {'5': 101}}, 'logit_bias'),
  ({'top_k': -1}, 'top_k'),
  ({'min_p': 2}, 'min_p'),
  ({'repetition_penalty': 0}, 'repetition_penalty'),
  ({'regex': '(a'}, 'regex'),
  ({'regex': 'a{99999999}'}, 'regex'),
  ({'regex': 'b{20}'}, 'max_tokens'),
  ({'response_format': {'type': 'json'}}, 'response_format'),
  ({'response_format': {'type': 'json_schema'}}, 'response_format'),
  ({'response_format': {'type': 'json_schema', 'json_schema': {
    'schema': {'type': 'nothing'}}}}, 'response_format'),
  ({'beam_width': 2, 'stream': True}, 'beam_width'),
  ({'beam_width': 2, 'n': 3}, 'beam_width'),
  ({'beam_width': 2, 'stop': 'x'}, 'beam_width'),
  ({'beam_width': 65}, 'beam_width'),
  ({'user': 5}, 'user'),
]  # fmt: skip


@pytest.mark.parametrize('fields, param', REFUSED)
def test_a_mistake_is_named(server, fields, param):
  status, headers, body = server.ask(
    '/v1/completions', {'prompt': 'a'} | fields
  )
  assert (status, headers['content-type']) == (400, 'application/json'), body
  error = json.loads(body)['error']
  assert set(error) == {'message', 'type', 'param', 'code'}
  assert error['type'] == 'invalid_request_error'
  assert error['param'] == param and error['message'], error
  assert '\n' not in error['message']


@pytest.mark.parametrize('body', [
  b'', b'{', b'[]', b'3', b'null', b'"x"', b'{"temperature": NaN}',
  b'{"temperature": Infinity}', b'{"temperature": 1e999}', b'\xff\xfe',
  b'[' * 100_000, b'{"a":' * 50_000,
  b'{"seed": ' + b'9' * 5000 + b'}', b'{"prompt": "a", "prompt": 1}',
])  # fmt: skip
def test_what_is_no_request_is_a_400(server, body):
  status, headers, got = server.ask('/v1/completions', body)
  assert (status, headers['content-type']) == (400, 'application/json'), got
  assert json.loads(got)['error']['message']


def test_other_statuses(server):
  def status(*args, **more):
    code, headers, body = server.ask(*args, **more)
    assert headers['content-type'] == 'application/json'
    assert json.loads(body)['error']['message']
    return code

  assert status('/v1/completions', {'model': 'other'}) == 404
  assert status('/v1/models/other') == 404
  assert status('/nowhere') == 404
  assert status('/v1/completions') == 405
  assert status('/v1/models', {}) == 405
  assert status('/v1/completions', b'x' * (2 << 20)) == 413
  assert status('/v1/completions', b'prompt=a', {'content-type': 'a/b'}) == 400
  assert server.ask('/v1/models/toy')[0] == 200


@pytest.mark.parametrize(
  'path', ['/nowhere', '/v1/embeddings', '/v1/responses', '/v1/models/a/b']
)
def test_what_is_not_served_names_what_is(server, path):
  status, _, body = server.ask(path, {'model': 'toy', 'input': 'a'})
  says = json.loads(body)['error']['message']
  assert status == 404 and len(says) <= 240
  for name in (path, '/v1/completions', '/v1/chat/completions', '/score'):
    assert name in says
  status, _, body = server.ask('/v1/completions')
  assert status == 405
  assert json.loads(body)['error']['message'] == (
    '/v1/completions takes POST, not GET'
  )


# What a client may send as null, and where; `...` stands for a good value.
_PLACES = {
  '/v1/completions': [{}, {'response_format': {'type': 'text'}}],
  '/v1/chat/completions': [
    {'messages': [{'role': 'user', 'content': 'a'}]},
    {'stream': True, 'stream_options': {}},
    {'response_format': {'type': 'json_schema',
                         'json_schema': {'name': 'a', 'schema': True}}},
  ],
  '/validate': [{'regex': 'a'}],
  '/score': [{'text': 'a'}],
  '/tokenize': [{'prompt': 'a'}],
  '/detokenize': [{'tokens': [97]}],
}  # fmt: skip


def _fields_of(document, schema):
  while '$ref' in schema:
    name = schema['$ref'].rpartition('/')[2]
    schema = document['components']['schemas'][name]
  return schema


def test_null_leaves_any_field_out(server):
  document = json.loads(server.ask('/openapi.json')[2])
  for path, bodies in _PLACES.items():
    schema = document['paths'][path]['post']['requestBody']['content']
    schema = _fields_of(document, schema['application/json']['schema'])
    needed = schema.get('required', ())
    assert schema['additionalProperties'] == {'type': 'null'}
    nulls = {n: None for n in schema['properties'] if n not in needed}
    for body in bodies:
      if path == '/v1/chat/completions':
        body = {'messages': [{'role': 'user', 'content': 'a'}]} | body
      for more in ({'tools': None, 'service_tier': None}, nulls):
        status, _, got = server.ask(path, more | body)
        assert status == 200, got
      for name in needed:
        status, _, got = server.ask(path, body | {name: None})
        assert status == 400 and name in json.loads(got)['error']['message']


@pytest.mark.parametrize('strict', [False, True, None])
def test_a_schema_is_kept_whether_it_is_called_strict_or_not(server, strict):
  schema = {'enum': ['one', 'two', 3]}
  form = {'name': 'x', 'strict': strict, 'schema': schema}
  found = server.complete(
    prompt='a',
    max_tokens=9,
    seed=1,
    response_format={'type': 'json_schema', 'json_schema': form},
  )
  assert json.loads(found['choices'][0]['text']) in schema['enum']


@pytest.mark.parametrize('path, name', [
  ('/v1/completions', 'stream'), ('/v1/completions', 'echo'),
  ('/v1/completions', 'ignore_eos'), ('/v1/chat/completions', 'logprobs'),
  ('/v1/completions', 'stream_options.include_usage'),
  ('/v1/completions', 'stream_options.include_obfuscation'),
  ('/v1/completions', 'response_format.json_schema.strict'),
  ('/score', 'per_char'), ('/tokenize', 'add_special_tokens'),
])  # fmt: skip
@pytest.mark.parametrize('value', [0, 1, 0.0, 'false'])
def test_what_is_true_or_false_is_no_number(server, path, name, value):
  good = {
    '/v1/completions': {'stream': True},
    '/v1/chat/completions': {'messages': [{'role': 'user', 'content': 'a'}]},
    '/score': {'text': 'a'}, '/tokenize': {'prompt': 'a'},
  }  # fmt: skip
  body = value
  for part in reversed(name.split('.')):
    body = {part: body}
  if 'json_schema' in name:
    body['response_format']['type'] = 'json_schema'
    body['response_format']['json_schema']['schema'] = True
  status, _, got = server.ask(path, good[path] | body)
  assert status == 400, got
  assert json.loads(got)['error']['message'].startswith(f'{name}: ')


@pytest.mark.parametrize('body, path', [
  ({'stream_options': {'other': 1}}, 'stream_options.other'),
  ({'logit_bias': {'5': 101}}, 'logit_bias.5'),
  ({'logit_bias': {'str': 1}}, 'logit_bias.str'),
  ({'stop': ['a', 1]}, 'stop.1'),
  ({'stop': {'str': 1}}, 'stop'),
  ({'prompt': [[1], []]}, 'prompt.1'),
  ({'response_format': {'type': 'yaml'}}, 'response_format.type'),
  ({'response_format': {'type': 'json_schema'}},
   'response_format.json_schema'),
  ({'response_format': {'type': 'text', 'json_schema': {'schema': True}}},
   'response_format.json_schema'),
  ({'response_format': {'type': 'json_schema', 'json_schema': {}}},
   'response_format.json_schema.schema'),
  ({'response_format': {'type': 'json_schema', 'json_schema': {
    'schema': {'properties': {'a': {'type': 'no'}}, 'type': 'object'}}}},
   'response_format.json_schema.schema: schema #/properties/a'),
])  # fmt: skip
def test_a_mistake_within_is_named_by_its_path(server, body, path):
  status, _, got = server.ask('/v1/completions', body)
  error = json.loads(got)['error']
  assert status == 400 and error['param'] == path.split('.')[0].split(':')[0]
  assert re.match(rf'{re.escape(path)}(?![.\w])', error['message']), error


@pytest.mark.parametrize('prompt', ['', '{', 'é'])
@pytest.mark.parametrize('seed', [1, 2])
def test_any_json_object(server, prompt, seed):
  for most in (16, 200):
    found = server.complete(
      prompt=prompt, seed=seed, max_tokens=most,
      response_format={'type': 'json_object'},
    )  # fmt: skip
    assert isinstance(json.loads(found['choices'][0]['text']), dict)


def test_any_text_is_a_prompt(server):
  planes = ''.join(chr(0x10000 * p + 0x41) for p in range(17))
  for prompt in (
    '',
    '\0',
    planes,
    'x' * 60_000,
    '\u202e\ufeff\u2028',
    '😀' * 99,
  ):
    found = server.complete(prompt=prompt, max_tokens=3, seed=1)
    assert len(found['choices'][0]['text']) <= 3


_NO_TEXTS = ('\\ud800', 'a\\udfff', '\\udc00\\ud800', '\xff', '\xed\xa0\x80')


def test_text_that_utf_8_cannot_have_is_refused_in_every_field(server):
  """Half a surrogate pair and stray bytes, as any text and as any key."""
  document = json.loads(server.ask('/openapi.json')[2])
  schemas, tried = document['components']['schemas'], 0
  for path, methods in document['paths'].items():
    if 'post' not in methods:
      continue
    content = methods['post']['requestBody']['content']['application/json']
    for case in _with_texts(content['schema'], schemas):
      name = next(iter(case))
      for text in _NO_TEXTS:
        data = json.dumps(case).replace('@', text).encode('latin-1')
        status, _, body = server.ask(path, data)
        tried += 1
        assert status == 400, (path, data, body)
        error = json.loads(body)['error']
        if name != '@':
          assert error['param'] == name, (path, data, body)
          assert error['message'].startswith(name), (path, data, body)
        assert 'UTF-8' in error['message']
  assert tried > 300


def _with_texts(schema, schemas):
  """Values of a schema of which each has one text, `@`, where it may."""
  if '$ref' in schema:
    yield from _with_texts(schemas[schema['$ref'].split('/')[-1]], schemas)
  for kind in ('anyOf', 'oneOf'):
    for option in schema.get(kind, ()):
      yield from _with_texts(option, schemas)
  kind = schema.get('type')
  if kind == 'string' and 'enum' not in schema and 'const' not in schema:
    yield '@'
  elif kind == 'array':
    for item in _with_texts(schema['items'], schemas):
      yield from ([item], [item, item])
  elif kind == 'object':
    yield {'@': 0}
    for name, inner in schema.get('properties', {}).items():
      yield from ({name: value} for value in _with_texts(inner, schemas))
    more = schema.get('additionalProperties')
    if more is True:  # anything, as in a schema
      yield from ({'a': '@'}, {'enum': ['@']}, {'properties': {'@': {}}})


def test_tokens_and_back(server):
  text = 'é—😀 \0'
  status, _, body = server.ask(
    '/tokenize', {'prompt': text, 'add_special_tokens': False}
  )
  tokens = json.loads(body)
  assert status == 200 and tokens['tokens'] == list(text.encode())
  _, _, body = server.ask('/detokenize', {'tokens': tokens['tokens']})
  assert json.loads(body) == {'prompt': text}
  assert server.ask('/detokenize', {'tokens': [9999]})[0] == 400
  info = json.loads(server.ask('/tokenizer_info')[2])
  assert info['eos_token'] == '<eos>' and info['vocab_size'] == 260


def test_scores_are_those_of_craft_score(server, trained):
  from craft_jax.inference.surprisal import score_texts

  asked = ['12 squared is 144', 'é—😀']
  status, _, body = server.ask('/score', {'text': asked, 'per_char': True})
  assert status == 200, body
  want = score_texts(
    trained, [(str(i), t.encode()) for i, t in enumerate(asked)], each=True
  )
  for got, one, text in zip(
    json.loads(body)['texts'], want, asked, strict=True
  ):
    assert got['nats'] == pytest.approx(one.figures['nats'], abs=1e-3)
    assert got['per_char']['characters'] == list(text)
  assert server.ask('/score', {'text': []})[0] == 400
  assert server.ask('/score', {'text': 'a', 'stride': 65})[0] == 400
  one = json.loads(server.ask('/score', {'text': asked[0]})[2])['texts']
  assert len(one) == 1 and 'per_char' not in one[0]


def test_figures(server):
  """In Prometheus' own parser; what one request adds to them."""

  def figures():
    _, headers, body = server.ask('/metrics')
    assert headers['content-type'].startswith('text/plain')
    families = list(parser.text_string_to_metric_families(body.decode()))
    assert all(family.documentation for family in families)
    return collections.Counter(
      {
        (one.name, *one.labels.values()): one.value
        for family in families
        for one in family.samples
      }
    )

  before = figures()
  body = server.complete(
    prompt='é', n=2, max_tokens=50, ignore_eos=True, allowed_chars='é—😀'
  )
  written = sum(len(choice['text']) for choice in body['choices'])
  server.until(lambda: not server.metric('craft_slots_busy'))
  more = figures() - before
  assert more['craft_requests_total', '/v1/completions', '200'] == 1
  assert more['craft_characters_total',] == written
  tokens = more['craft_tokens_total',]  # bytes, of which each is of some
  assert tokens >= body['usage']['completion_tokens'] > written
  assert more['craft_prompt_tokens_total',] == 2
  assert more['craft_first_character_seconds_count',] == 1
  assert 1 <= more['craft_character_seconds_count',] <= 100
  assert more['craft_dispatches_total',] >= 1
  assert before['craft_slots',] == 16 and before['craft_full_rate',] > 0
  assert before['craft_promised_wait_seconds',] == 10
  server.ask('/v1/completions', {'max_tokens': -1})
  assert (figures() - before)[
    'craft_requests_total', '/v1/completions', '400'
  ] == 1
