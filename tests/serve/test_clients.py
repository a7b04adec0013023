"""Clients of other makers, which launch/environment.sh installs, end to end."""

import json
import os
import pathlib
import shutil
import subprocess

import jsonschema
import pytest

from tests.serve import python_clients

_HERE = pathlib.Path(__file__).parent
_FOLDER = (
  pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache'))
  / 'craft-clients'
)
_SCHEMA = {
  'type': 'object',
  'properties': {
    'name': {'type': 'string', 'maxLength': 8},
    'age': {'type': 'integer', 'minimum': 0, 'maximum': 120},
  },
  'required': ['name', 'age'],
  'additionalProperties': False,
}
_PROGRAM = """
const [url, name, schema] = process.argv.slice(2)
const OpenAI = require('openai')
const {generateObject, generateText, streamText, jsonSchema} = require('ai')
const {createOpenAICompatible} = require('@ai-sdk/openai-compatible')

async function openai() {
  const client = new OpenAI(
    {baseURL: url + '/v1', apiKey: 'none', maxRetries: 0})
  const asked = {
    model: name, messages: [{role: 'user', content: '12 squared'}],
    max_tokens: 60, seed: 3,
  }
  const whole = await client.chat.completions.create(asked)
  const again = await client.chat.completions.create(
    {...asked, messages: [...asked.messages, whole.choices[0].message]})
  let text = '', usage = null
  const options = {stream: true, stream_options: {include_usage: true}}
  for await (const event of await client.chat.completions.create(
    {...asked, ...options})) {
    text += event.choices[0]?.delta?.content ?? ''
    usage = event.usage ?? usage
  }
  const form = {type: 'json_schema', json_schema: {
    name: 'a', strict: true, schema: JSON.parse(schema)}}
  const object = await client.chat.completions.create(
    {...asked, response_format: form})
  let refused = null
  try {
    await client.embeddings.create({model: name, input: 'a'})
  } catch (error) {
    refused = [error.status, error.message]
  }
  return {
    whole: whole.choices[0].message.content, wholeUsage: whole.usage,
    text, usage, again: again.object, refused,
    object: JSON.parse(object.choices[0].message.content),
  }
}

async function vercel() {
  const asked = {
    prompt: '12 squared', maxOutputTokens: 60, seed: 3, maxRetries: 0}
  const of = strict => createOpenAICompatible({
    name: 'craft', baseURL: url + '/v1', includeUsage: true,
    supportsStructuredOutputs: strict})(name)
  const whole = await generateText({...asked, model: of(true)})
  const stream = streamText({...asked, model: of(true)})
  let text = ''
  for await (const part of stream.textStream) text += part
  const {object} = await generateObject(
    {...asked, model: of(true), schema: jsonSchema(JSON.parse(schema))})
  const free = await generateObject(
    {...asked, model: of(false), output: 'no-schema'})
  return {
    whole: whole.text, wholeUsage: whole.usage.totalTokens,
    text, usage: (await stream.usage).totalTokens, object, free: free.object,
  }
}

({openai, vercel})[process.argv[5]]().then(
  found => console.log('FOUND ' + JSON.stringify(found)))
"""


def _run(command, **environment):
  """What a program has printed after FOUND."""
  done = subprocess.run(
    command, env=os.environ | environment,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  lines = [x for x in done.stdout.split('\n') if x.startswith('FOUND ')]
  assert done.returncode == 0 and lines, done.stdout
  return json.loads(lines[0].removeprefix('FOUND '))


@pytest.mark.slow
@pytest.mark.parametrize('client', ['openai', 'vercel'])
def test_a_client_for_node(server, tmp_path, client):
  node = shutil.which('node')
  if not node or not (_FOLDER / 'craft-installed').exists():
    pytest.skip('no clients for Node: launch/test.sh --all installs them')
  program = tmp_path / 'program.cjs'
  program.write_text(_PROGRAM)
  found = _run(
    [node, program, server.url, server.name, json.dumps(_SCHEMA), client],
    NODE_PATH=str(_FOLDER / 'node_modules'),
  )
  assert found['text'] == found['whole'] != ''
  assert found['usage'] == found['wholeUsage']
  jsonschema.validate(found['object'], _SCHEMA)
  if client == 'openai':
    status, says = found['refused']
    assert status == 404 and '/v1/completions' in says
    assert found['again'] == 'chat.completion'
  else:
    assert isinstance(found['free'], dict)


@pytest.mark.slow
@pytest.mark.parametrize('client', python_clients.CLIENTS)
def test_a_client_for_python(server, tmp_path, client):
  python = _FOLDER / 'python' / 'bin' / 'python'
  if not (_FOLDER / 'python' / 'craft-installed').exists():
    pytest.skip('no clients for Python: launch/test.sh --all installs them')
  found = _run(
    [python, _HERE / 'python_clients.py', client, server.url, server.name,
     tmp_path],
    LITELLM_LOCAL_MODEL_COST_MAP='True',  # instead of a download
  )  # fmt: skip
  assert found['text'] == found['whole'] != ''
  assert found['usage'] == found['whole_usage'] > 0
  assert isinstance(found['again'], str)
  assert found.get('plain') != ''
  assert len(found['objects']) >= 2
  for one in found['objects']:
    jsonschema.validate(one, _SCHEMA)
  assert isinstance(found['free'], dict)
  for name, (status, says) in found['refused'].items():
    served = '/v1/completions' if status == 404 else 'response_format'
    assert status in (400, 404) and served in says, (name, status, says)
